"""Servers that are missing, wrong or failing: which error says so."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import grpc
import pytest
from fake_triton import QUICK, fails

from pikfix.client import (
    ConnectionFailedError,
    InvalidPhotoError,
    Limits,
    MessageTooLargeError,
    ModelNotFoundError,
    Retry,
    ServerUnreachableError,
    StepFailedError,
    Timeout,
    WrongServerError,
)


def test_a_bad_photo_is_reported_by_the_step_that_found_it(kind, server):
    with kind(server.url) as client:
        with pytest.raises(InvalidPhotoError, match="cannot identify") as caught:
            client.restore(b"no picture")
        assert (caught.value.step, caught.value.code) == ("decode_photo", "bad_photo")
        assert client.is_ready()


def test_a_crash_in_a_step(kind, server, jpeg):
    fails(server, grpc.StatusCode.INTERNAL, "in ensemble 'pikfix_photo', [colorize] internal: 0/0")
    with kind(server.url) as client, pytest.raises(StepFailedError, match="step colorize"):
        client.restore(jpeg)


def test_a_missing_model(kind, server, jpeg):
    del server.models["pikfix_photo"]
    with kind(server.url) as client:
        with pytest.raises(ModelNotFoundError, match="pikfix export"):
            client.restore(jpeg)
        with pytest.raises(ModelNotFoundError):
            client.ensure_ready()
        assert not client.is_ready()


def test_nobody_listens(kind, free_url, jpeg):
    with kind(free_url, retry=QUICK) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnreachableError, match=r"refused.*pikfix serve") as caught:
            client.restore(jpeg)
    assert free_url in str(caught.value)
    assert time.monotonic() - start < 5


def test_no_such_host(kind, jpeg):
    with (
        kind("no-such-host.invalid:8001", retry=QUICK) as client,
        pytest.raises(ServerUnreachableError),
    ):
        client.restore(jpeg, timeout=20)


def test_the_http_port(kind, jpeg):
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        with (
            kind(f"127.0.0.1:{web.server_port}", retry=QUICK) as client,
            pytest.raises(WrongServerError, match="gRPC port"),
        ):
            client.restore(jpeg, timeout=20)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_another_grpc_server(kind, jpeg):
    from concurrent.futures import ThreadPoolExecutor

    other = grpc.server(ThreadPoolExecutor(2))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with kind(f"127.0.0.1:{port}") as client, pytest.raises(WrongServerError):
            client.restore(jpeg)
    finally:
        other.stop(None).wait()


def test_a_port_that_says_nothing(kind, jpeg):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        timeout = Timeout(connect=0.3)
        with (
            kind(url, timeout=timeout, retry=Retry.never()) as client,
            pytest.raises(ConnectionFailedError),
        ):
            client.restore(jpeg, timeout=20)


def test_an_answer_over_the_limit(kind, server, fake, jpeg):
    server.answer = lambda request, context: fake.response(
        "pikfix_photo", result=b"x" * 200_000, report=b"{}"
    )
    limits = Limits(message_bytes=100_000)
    with kind(server.url, limits=limits) as client, pytest.raises(MessageTooLargeError):
        client.restore(jpeg)
