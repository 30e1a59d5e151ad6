"""TLS, and what is said where it does not fit."""

from __future__ import annotations

import subprocess

import grpc
import pytest
from fake_triton import QUICK

from pikfix.client import (
    ConnectionFailedError,
    Tls,
    TlsError,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) files for localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl program")
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def secure(fake, certificate):
    pair = (certificate[1].read_bytes(), certificate[0].read_bytes())
    running = fake.FakeTriton(grpc.ssl_server_credentials([pair]))
    yield running
    running.close()


def test_tls(kind, secure, certificate, jpeg):
    with kind(f"localhost:{secure.port}", tls=Tls(certificate[0])) as client:
        assert client.restore(jpeg).image.size == (64, 48)
    with kind(secure.url, tls=Tls(certificate[0], server_name="localhost")) as client:
        assert client.restore(jpeg).image.size == (64, 48)


@pytest.mark.parametrize("case", ["not trusted", "other name", "no tls"])
def test_tls_that_does_not_fit(kind, secure, certificate, jpeg, case):
    tls = {"not trusted": Tls(), "other name": Tls(certificate[0]), "no tls": None}[case]
    # Without TLS the server hangs up on what is no handshake, and gRPC cannot tell why.
    wanted = ConnectionFailedError if tls is None else TlsError
    with kind(secure.url, tls=tls, retry=QUICK) as client, pytest.raises(wanted):
        client.restore(jpeg, timeout=20)


def test_tls_at_a_server_without(kind, server, certificate, jpeg):
    with kind(server.url, tls=Tls(certificate[0]), retry=QUICK) as client:
        with pytest.raises(TlsError, match="exactly if the server uses TLS"):
            client.restore(jpeg, timeout=20)
        with pytest.raises(TlsError):
            client.is_ready()


def test_a_client_certificate(kind, fake, certificate, jpeg):
    chain, key = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(key, chain)], chain, require_client_auth=True)
    mutual = fake.FakeTriton(credentials)
    own = {"private_key": certificate[1], "certificate_chain": certificate[0]}
    try:
        with kind(f"localhost:{mutual.port}", tls=Tls(certificate[0], **own)) as client:
            assert client.restore(jpeg).image.size == (64, 48)
        with (
            kind(f"localhost:{mutual.port}", tls=Tls(certificate[0]), retry=QUICK) as client,
            pytest.raises(ConnectionFailedError),
        ):
            client.restore(jpeg, timeout=20)
    finally:
        mutual.close()


def test_replicas_with_tls_share_one_name(kind, fake, certificate, jpeg, until):
    pair = (certificate[1].read_bytes(), certificate[0].read_bytes())
    servers = [fake.FakeTriton(grpc.ssl_server_credentials([pair])) for _ in range(2)]
    tls = Tls(certificate[0], server_name="localhost")
    try:
        with kind(f"ipv4:{servers[0].url},{servers[1].url}", tls=tls, token="secret") as client:
            until(lambda: client.restore(jpeg) and all(one.requests for one in servers))
    finally:
        for one in servers:
            one.close()
    assert {one["authorization"] for one in servers[1].metadata} == {"Bearer secret"}


def test_tls_files_that_hold_something_else(kind, secure, jpeg, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    with (
        kind(f"localhost:{secure.port}", tls=Tls(tmp_path / "ca.pem"), retry=QUICK) as client,
        pytest.raises(ConnectionFailedError),
    ):
        client.restore(jpeg, timeout=20)


def test_tls_files_that_are_missing(kind, jpeg, tmp_path):
    # The asyncio client opens its channel at the first call.
    with pytest.raises(FileNotFoundError), kind("a:1", tls=Tls(tmp_path / "no.pem")) as client:
        client.restore(jpeg)
