"""What is tried again, and what never: full queues, budgets, servers that start late."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from fake_triton import QUICK, fails

from pikfix.client import (
    AsyncPikFixClient,
    ClientClosedError,
    ConnectionFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    PikFixClient,
    PikFixError,
    Retry,
    ServerBusyError,
)
from pikfix.client._waits import pause_before_room


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
    retry = dataclasses.replace(QUICK, wait_for_room=False)
    with kind(server.url, retry=retry) as client, pytest.raises(ServerBusyError):
        client.restore(jpeg)
    assert len(server.requests) == QUICK.attempts


@pytest.fixture
def quickly(monkeypatch):
    """Waits that do not hold a test up."""
    monkeypatch.setattr(ServerBusyError, "retry_after", 0.02)


NO_ROOM = [
    (grpc.StatusCode.UNAVAILABLE, "in ensemble 'pikfix_photo', Exceeds maximum queue size"),
    (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11"),
]


@pytest.mark.parametrize(("status", "text"), NO_ROOM, ids=["full", "waited", "enhance your calm"])
def test_a_full_queue_is_waited_for(kind, server, jpeg, quickly, status, text):
    """More refusals than gRPC repeats, and statuses that it never does."""
    fails(server, status, text, times=6)
    with kind(server.url, retry=QUICK) as client:
        assert client.restore(jpeg, timeout=20).image.size == (64, 48)
    assert len(server.requests) == 7
    # Every attempt has the deadline of the whole request.
    assert len({request.SerializeToString(deterministic=True) for request in server.requests}) == 1


def test_tensors_wait_for_room_too(kind, server, quickly):
    fails(server, grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", times=3)
    with kind(server.url, retry=QUICK) as client:
        photo = np.zeros((1, 1, 32, 32), np.float32)
        restored, _ = client.infer(photo, np.zeros((1, 1, 3, 32, 32), np.float32), timeout=20)
    assert (restored.shape, len(server.requests)) == ((1, 1, 32, 32), 4)


def test_waiting_for_room_ends_with_the_request(kind, server, jpeg, quickly):
    fails(server, grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
    start = time.monotonic()
    with kind(server.url, retry=QUICK) as client, pytest.raises(ServerBusyError):
        client.restore(jpeg, timeout=1)
    assert 0.3 < time.monotonic() - start < 1.5
    # Pauses of 0.02 s, doubling: five of them fit.
    assert 5 <= len(server.requests) <= 6


def test_the_errors_tell_of_the_wait(kind, server, fake, jpeg, quickly):
    """Whether the time given ends between two attempts, or in one."""
    busy = "[decode_photo] busy: 16 photos are being worked on, of at most 16"
    fails(server, grpc.StatusCode.UNAVAILABLE, busy)
    said = r"of at most 16 \(waited 0\.\d s for room in the server\); wait"
    with kind(server.url, retry=QUICK) as client, pytest.raises(ServerBusyError, match=said):
        client.restore(jpeg, timeout=1)

    def late(request, context):
        if len(server.requests) < 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        return fake.hang(request, context)

    server.requests.clear()
    server.answer = late
    said = r"no answer in the time given \(waited 0\.\d s for room in the server\); give a longer"
    with kind(server.url, retry=QUICK) as client, pytest.raises(DeadlineExceededError, match=said):
        client.restore(jpeg, timeout=1)


def test_closing_ends_an_asyncio_clients_wait(server, jpeg):
    fails(server, grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")

    async def main():
        client = AsyncPikFixClient(server.url)
        task = asyncio.create_task(client.restore(jpeg))
        while not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        start = time.monotonic()
        await client.close()
        with pytest.raises(ClientClosedError):
            await task
        assert time.monotonic() - start < 0.5  # the first wait alone takes a second

    asyncio.run(main())


def test_closing_ends_the_wait(server, jpeg):
    fails(server, grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
    client = PikFixClient(server.url)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(ClientClosedError):
        client.restore(jpeg)
    assert time.monotonic() - start < 0.95  # the first wait alone takes a second
    timer.join()


def test_the_pauses_double_up_to_a_bound():
    error = ServerBusyError("no room")
    bounds = [1, 2, 4, 8, 8, 8]
    for refusals, least in enumerate(bounds):
        pauses = [pause_before_room(error, refusals) for _ in range(50)]
        assert least <= min(pauses) <= max(pauses) <= 1.5 * least
        assert len(set(pauses)) > 10  # not all at once
    assert pause_before_room(error, 10_000) <= 12


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_a_wish_that_is_neither_is_refused(value):
    with pytest.raises(ValueError, match="wait_for_room must be True or False"):
        Retry(wait_for_room=value)


def test_repeats_never(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    busy = pytest.raises(ServerBusyError, match="wait at least 1 s")
    with kind(server.url, retry=Retry.never()) as client, busy as refused:
        client.restore(jpeg)
    assert refused.value.retry_after == 1
    assert len(server.requests) == 1


def test_the_budget_stops_repeats_to_a_server_that_keeps_failing(kind, server, jpeg):
    fails(server, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    retry = Retry(initial_backoff=0.01, max_backoff=0.01, budget_tokens=10, wait_for_room=False)
    with kind(server.url, retry=retry) as client:
        for _ in range(6):
            with pytest.raises(ServerBusyError):
                client.restore(jpeg)
    # 10 tokens: 5 attempts bring them to a half, and every later request is sent once.
    assert 6 + 3 <= len(server.requests) <= 6 + 5


@pytest.mark.parametrize(
    "code",
    [
        code
        for code in grpc.StatusCode
        if code.name not in ("OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
    ],
    ids=lambda code: code.name,
)
def test_nothing_else_is_tried_again(kind, server, jpeg, code):
    fails(server, code, "in ensemble 'pikfix_photo', something")
    with kind(server.url, retry=QUICK) as client, pytest.raises(PikFixError) as caught:
        client.restore(jpeg)
    assert caught.value.status == code.name
    assert len(server.requests) == 1


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
