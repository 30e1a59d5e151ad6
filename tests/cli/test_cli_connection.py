"""How a command reaches a server: addresses, encryption and credentials."""

from __future__ import annotations

import subprocess

import grpc
import pytest
from fake_triton import FakeTriton


@pytest.fixture
def photo(picture, tmp_path):
    return picture(tmp_path / "a.jpg")


@pytest.fixture
def guarded(server, fake):
    """The server, which takes one token."""

    def check(request, context):
        if dict(context.invocation_metadata()).get("authorization") != "Bearer right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Client authentication failed.")
        return fake.answer(request, context)

    server.answer = check
    return server


def test_a_token_from_an_option_and_from_the_environment(pikfix, guarded, photo, tmp_path):
    words = ("restore", photo, "-o", tmp_path / "out", "--overwrite")
    assert pikfix(*words, "--url", guarded.url, "--token", "right").returncode == 0
    environment = {"PIKFIX_URL": guarded.url, "PIKFIX_TOKEN": "right"}
    assert pikfix(*words, env=environment).returncode == 0
    done = pikfix(*words, "--token", "wrong", env=environment)
    assert done.returncode == 1
    assert "check the token (PIKFIX_TOKEN)" in done.stderr
    assert "wrong" not in done.stderr


def test_headers_of_options_and_of_the_environment(pikfix, server, photo, tmp_path):
    done = pikfix(
        *("restore", photo, "-o", tmp_path / "out", "--url", server.url),
        *("--header", "X-Tenant: museum", "--header", "x-run: 7: b"),
        env={"PIKFIX_HEADERS": "x-tenant: other\nx-zone: north"},
    )
    assert done.returncode == 0, done.stderr
    sent = server.metadata[0]
    assert (sent["x-tenant"], sent["x-run"], sent["x-zone"]) == ("museum", "7: b", "north")


def test_tls_with_a_client_certificate(pikfix, photo, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=replicas", "-addext", "subjectAltName=DNS:replicas"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl program")
    pair, chain = [(key.read_bytes(), certificate.read_bytes())], certificate.read_bytes()
    secure = FakeTriton(grpc.ssl_server_credentials(pair, chain, require_client_auth=True))
    try:
        done = pikfix(
            *("restore", photo, "-o", tmp_path / "out", "--url", secure.url),
            *("--tls-ca", certificate, "--tls-cert", certificate, "--tls-server-name", "replicas"),
            env={"PIKFIX_TLS_KEY": str(key), "PIKFIX_TLS_CERT": "replaced"},
        )
        assert done.returncode == 0, done.stderr
        done = pikfix(
            *("restore", photo, "-o", tmp_path / "other", "--url", secure.url),
            *("--no-tls", "--tls-ca", certificate),
        )
        assert done.returncode == 2
        assert "--no-tls excludes" in done.stderr
    finally:
        secure.close()


def test_replicas_share_a_folder(pikfix, server, picture, tmp_path):
    second = FakeTriton()
    try:
        for number in range(12):
            picture(tmp_path / "in" / f"{number}.png", seed=number)
        done = pikfix(
            *("restore", tmp_path / "in", "-o", tmp_path / "out"),
            *("--url", f"ipv4:{server.url},{second.url}"),
        )
        assert done.returncode == 0, done.stderr
        shares = sorted([len(server.requests), len(second.requests)])
        assert sum(shares) == 12
        assert shares[0] >= 3
    finally:
        second.close()


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--token", "x"], {}, "--token needs the --url of a server"),
        (["--tls-ca", "x"], {"PIKFIX_TOKEN": "y"}, "--tls-ca needs the --url"),
        (["--url", "ipv4:a:1"], {}, "dns:///HOST:PORT"),
        (["--url", "a:1", "--header", "x"], {}, "NAME: VALUE"),
        (["--url", "a:1", "--tls-key", "k"], {}, "together"),
        (["--url", "a:1", "--token", ""], {}, "token"),
        (["--url", "ipv4:1.1.1.1:1,1.1.1.2:1", "--tls"], {}, "--tls-server-name"),
        ([], {"PIKFIX_URL": "http://a:1"}, "HOST:PORT"),
        (["--url", "a:1"], {"PIKFIX_PROXY": "x"}, "PIKFIX_PROXY must be 1 or 0"),
    ],
)
def test_wrong_usage(pikfix, photo, tmp_path, words, variables, said):
    done = pikfix("restore", photo, "-o", tmp_path / "out", *words, env=variables)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_an_address_the_variables_are_for_no_private_server(pikfix, photo, tmp_path):
    done = pikfix(
        *("restore", photo, "-o", tmp_path / "out", "--model-repository", tmp_path / "gone"),
        env={"PIKFIX_TOKEN": "x", "PIKFIX_TLS": "1"},
    )
    assert done.returncode == 1
    assert "gone does not exist" in done.stderr
