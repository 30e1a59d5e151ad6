"""Both clients against a real gRPC server: connections, deadlines, repeats, failures."""

from __future__ import annotations

import asyncio
import http.server
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from pikfix.client import (
    AsyncPikFixClient,
    ClientClosedError,
    ConnectionFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidPhotoError,
    Limits,
    MessageTooLargeError,
    ModelNotFoundError,
    PikFixClient,
    PikFixError,
    RequestCancelledError,
    Retry,
    ServerBusyError,
    ServerNotReadyError,
    ServerUnreachableError,
    StepFailedError,
    Timeout,
    Tls,
    TlsError,
    WrongServerError,
)

QUICK = Retry(initial_backoff=0.02, max_backoff=0.05)


class Blocking:
    """The asyncio client behind the blocking client's calls, so that one test fits both."""

    def __init__(self, *args, **kwargs):
        self._loop = asyncio.new_event_loop()
        self._client = AsyncPikFixClient(*args, **kwargs)

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[PikFixClient, Blocking], ids=["sync", "asyncio"])
def kind(request):
    return request.param


def fails(server, fake_status, text, times=None):
    """Let the server fail with a status: always, or the first ``times`` times."""
    from fake_triton import answer

    def respond(request, context):
        if times is None or len(server.requests) <= times:
            context.abort(fake_status, text)
        return answer(request, context)

    server.answer = respond


def test_one_connection_serves_all_calls(kind, server, jpeg):
    with kind(server.url) as client:
        for _ in range(3):
            client.restore(jpeg)
        client.infer(np.zeros((1, 1, 32, 32), np.float32), np.zeros((1, 1, 3, 8, 8), np.float32))
    assert len(server.peers) == 4
    assert len(set(server.peers)) == 1


def test_deadline_goes_to_grpc_and_to_the_steps(kind, server, jpeg):
    with kind(server.url) as client:
        before = time.time()
        client.restore(jpeg, timeout=20)
        after = time.time()
    deadline = server.requests[0].parameters["deadline_unix_ms"]
    assert deadline.WhichOneof("parameter_choice") == "int64_param"
    assert before + 20 - 0.001 <= deadline.int64_param / 1000 <= after + 20
    assert 18 < server.remaining[0] < 21  # gRPC rounds what it sends


def test_default_deadline_is_the_clients_and_can_be_none(kind, server, jpeg):
    with kind(server.url, timeout=Timeout(request=33)) as client:
        client.restore(jpeg)
    with kind(server.url, timeout=Timeout(request=None)) as client:
        client.restore(jpeg)
    assert 31 < server.remaining[0] < 34
    assert server.remaining[1] is None
    assert "deadline_unix_ms" not in server.requests[1].parameters


def test_a_deadline_ends_the_wait(kind, server, fake, jpeg):
    server.answer = fake.hang
    with kind(server.url) as client:
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="longer timeout"):
            client.restore(jpeg, timeout=0.3)
    assert 0.25 < time.monotonic() - start < 3
    assert len(server.requests) == 1


def test_a_full_queue_is_tried_again(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", times=2)
    with kind(server.url, retry=QUICK) as client:
        assert client.restore(jpeg).image.size == (64, 48)
    assert len(server.requests) == 3
    # The same request each time, deadline included.
    assert len({request.SerializeToString(deterministic=True) for request in server.requests}) == 1


def test_a_request_larger_than_grpcs_default_buffer_is_tried_again(kind, server):
    """gRPC keeps 256 KiB for repeats unless told otherwise, and drops the repeat silently."""
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", times=1)
    photo = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    with kind(server.url, retry=QUICK) as client:
        client.restore(photo, color=False)
    assert len(server.requests) == 2
    assert server.requests[1].ByteSize() > 2_000_000


def test_repeats_end(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    with kind(server.url, retry=QUICK) as client, pytest.raises(ServerBusyError):
        client.restore(jpeg)
    assert len(server.requests) == QUICK.attempts


def test_repeats_never(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    busy = pytest.raises(ServerBusyError, match="wait at least 1 s")
    with kind(server.url, retry=Retry.never()) as client, busy as refused:
        client.restore(jpeg)
    assert refused.value.retry_after == 1
    assert len(server.requests) == 1


def test_the_budget_stops_repeats_to_a_server_that_keeps_failing(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    retry = Retry(initial_backoff=0.01, max_backoff=0.01, budget_tokens=10)
    with kind(server.url, retry=retry) as client:
        for _ in range(6):
            with pytest.raises(ServerBusyError):
                client.restore(jpeg)
    # 10 tokens: 5 attempts bring them to a half, and every later request is sent once.
    assert 6 + 3 <= len(server.requests) <= 6 + 5


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code.name not in ("OK", "UNAVAILABLE")],
    ids=lambda code: code.name,
)
def test_nothing_else_is_tried_again(kind, server, jpeg, code):
    fails(server, code, "in ensemble 'pikfix_photo', something")
    with kind(server.url, retry=QUICK) as client, pytest.raises(PikFixError) as caught:
        client.restore(jpeg)
    assert caught.value.status == code.name
    assert len(server.requests) == 1


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


def test_readiness(kind, server, free_url):
    with kind(server.url) as client:
        client.ensure_ready()
        assert client.is_ready()
        server.models["pikfix_photo"] = "UNAVAILABLE"
        assert not client.is_ready()
        with pytest.raises(ServerNotReadyError, match=r"not ready \(UNAVAILABLE\)"):
            client.ensure_ready()
        server.ready = False
        with pytest.raises(ServerNotReadyError, match="the server is not ready"):
            client.ensure_ready()
    with kind(free_url) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnreachableError):
            client.ensure_ready()


def test_server_info(kind, server):
    with kind(server.url) as client:
        info = client.server_info()
    assert (info.url, info.name, info.version) == (server.url, "triton", "2.51.0")
    assert [(model.name, model.state) for model in info.models] == [
        ("pikfix", "READY"),
        ("pikfix_photo", "READY"),
    ]
    assert info.to_dict()["models"][0]["name"] == "pikfix"


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


def test_a_server_that_starts_late_is_reached(kind, fake, free_url, jpeg):
    """A refused connection is tried again, and a client outlives a restart of the server."""
    retry = Retry(attempts=5, initial_backoff=0.5, max_backoff=1)
    port = int(free_url.rpartition(":")[2])
    # free_url holds the port with a socket that does not listen; take one that is free.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    timer = threading.Timer(0.3, lambda: started.append(fake.FakeTriton(port=port)))
    timer.start()
    try:
        with kind(f"127.0.0.1:{port}", retry=retry) as client:
            assert client.restore(jpeg).image.size == (64, 48)
            started[0].close()
            started.append(fake.FakeTriton(port=port))
            assert client.restore(jpeg).image.size == (64, 48)
    finally:
        timer.join()
        for one in started:
            one.close()


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


@pytest.mark.parametrize("retry", [QUICK, Retry.never()], ids=["repeats", "never"])
def test_a_server_killed_in_mid_request(kind, doomed, jpeg, retry):
    url, process = doomed
    timer = threading.Timer(0.7, process.kill)
    timer.start()
    # Without repeats the break itself is seen; with repeats, that nobody is there any more.
    wanted = ConnectionLostError if retry.attempts == 1 else ConnectionFailedError
    with kind(url, retry=retry) as client, pytest.raises(wanted, match=url):
        client.restore(jpeg, timeout=30)
    timer.join()
    assert process.wait() < 0


def test_an_answer_over_the_limit(kind, server, fake, jpeg):
    server.answer = lambda request, context: fake.response(
        "pikfix_photo", result=b"x" * 200_000, report=b"{}"
    )
    limits = Limits(message_bytes=100_000)
    with kind(server.url, limits=limits) as client, pytest.raises(MessageTooLargeError):
        client.restore(jpeg)


def test_messages_over_grpcs_default_of_4_mib_pass_both_ways(kind, server):
    photo_l = np.random.default_rng(1).random((1, 1, 2048, 2048), np.float32)
    with kind(server.url) as client:
        restored_l, _ = client.infer(photo_l, np.zeros((1, 1, 3, 8, 8), np.float32))
    assert server.requests[0].ByteSize() > 16_000_000
    np.testing.assert_array_equal(restored_l, photo_l)


def test_a_closed_client_says_so(kind, server, jpeg):
    client = kind(server.url)
    with client:
        client.restore(jpeg)
        client.close()
        client.close()
        with pytest.raises(ClientClosedError):
            client.restore(jpeg)


def test_headers_are_sent(kind, server, jpeg):
    with kind(server.url, headers={"authorization": "Bearer x"}) as client:
        client.restore(jpeg)
    assert server.metadata[0]["authorization"] == "Bearer x"


def test_threads_share_a_client(server, jpeg):
    from concurrent.futures import ThreadPoolExecutor

    with PikFixClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.restore(jpeg).data, range(32)))
    assert len(set(results)) == 1
    assert len(set(server.peers)) == 1


def test_closing_in_mid_request_ends_the_call(server, fake, jpeg, until):
    server.answer = fake.hang
    client = PikFixClient(server.url)
    caught = []

    def call():
        try:
            client.restore(jpeg, timeout=30)
        except PikFixError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: server.requests)
    client.close()
    thread.join(10)
    assert len(caught) == 1
    assert isinstance(caught[0], (RequestCancelledError, ClientClosedError))


def test_asyncio_keeps_requests_in_flight_together(server, fake, jpeg):
    barrier = threading.Barrier(4, timeout=10)

    def together(request, context):
        barrier.wait()
        return fake.answer(request, context)

    server.answer = together

    async def run():
        async with AsyncPikFixClient(server.url) as client:
            return await asyncio.gather(*(client.restore(jpeg) for _ in range(4)))

    assert len(asyncio.run(run())) == 4
    assert server.most_at_once == 4


def test_cancelling_a_task_cancels_its_request(server, fake, jpeg):
    ended = threading.Event()

    def watch(request, context):
        context.add_callback(ended.set)
        return fake.hang(request, context)

    server.answer = watch

    async def run():
        async with AsyncPikFixClient(server.url) as client:
            task = asyncio.create_task(client.restore(jpeg))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.is_ready()

    asyncio.run(run())
    assert ended.wait(5)


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


def test_tls_files_that_are_missing(kind, jpeg, tmp_path):
    # The asyncio client opens its channel at the first call.
    with pytest.raises(FileNotFoundError), kind("a:1", tls=Tls(tmp_path / "no.pem")) as client:
        client.restore(jpeg)


def test_loopback_does_not_go_through_a_proxy(server, jpeg, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with PikFixClient(server.url, retry=Retry.never()) as client:
        client.restore(jpeg, timeout=10)


def test_the_client_needs_no_torch():
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'onnxruntime', 'pytriton', 'kornia'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import pikfix.client\n"
        "pikfix.client.PikFixClient().close()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
