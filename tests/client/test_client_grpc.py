"""Both clients against a real gRPC server: connections, deadlines, requests in flight."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pikfix.client import (
    AsyncPikFixClient,
    ClientClosedError,
    DeadlineExceededError,
    PikFixClient,
    PikFixError,
    RequestCancelledError,
    Retry,
    ServerNotReadyError,
    ServerUnreachableError,
    Timeout,
)


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
