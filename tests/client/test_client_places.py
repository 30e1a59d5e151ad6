"""A client that is closed, shared, copied or left behind while it works."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import threading
import time

import pytest
from fake_triton import QUICK, hang

from pikfix.client import (
    AsyncPikFixClient,
    ClientClosedError,
    ForkedClientError,
    Limits,
    PikFixClient,
    Retry,
    Timeout,
    Tls,
    WrongLoopError,
)


def one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 900
    return str(error)


def test_closing_cancels_calls_and_not_their_callers(server, jpeg):
    """gRPC cancels the call with asyncio's CancelledError, by which the caller's task would end."""

    async def main():
        client = AsyncPikFixClient(server.url, retry=Retry.never())
        server.answer = hang
        tasks = [asyncio.create_task(client.restore(jpeg)) for _ in range(3)]
        while len(server.requests) < 3:
            await asyncio.sleep(0.01)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(main())
    assert [type(one) for one in found] == [ClientClosedError] * 3
    assert "the client was closed before the answer came; make a new client" in one_line(found[0])


def test_closing_in_mid_call_is_named(server, jpeg):
    """By another thread, or by a signal's handler in the caller's own."""
    server.answer = hang
    for close in ("thread", "handler"):
        server.requests.clear()
        client = PikFixClient(server.url)

        def end(client=client, close=close):
            while not server.requests:
                time.sleep(0.01)
            client.close() if close == "thread" else os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_, client=client: client.close())
        thread = threading.Thread(target=end)
        thread.start()
        try:
            with pytest.raises(ClientClosedError, match="closed before the answer came"):
                client.restore(jpeg, timeout=20)
        finally:
            signal.signal(signal.SIGUSR1, before)
            thread.join()


@pytest.mark.parametrize("method", ["restore", "ensure_ready", "is_ready", "server_info"])
def test_without_asyncio(server, jpeg, method):
    """What drives the coroutine is no loop of asyncio, as under trio."""
    client = AsyncPikFixClient(server.url)
    call = getattr(client, method)(*([jpeg] if method == "restore" else []))
    with pytest.raises(WrongLoopError, match="no event loop of asyncio is running here") as caught:
        call.send(None)
    one_line(caught.value)


def test_a_handler_may_restore_a_photo_too(server, fake, jpeg):
    """While its thread waits for another."""
    sizes = []
    with PikFixClient(server.url) as client:

        def slowly(request, context):
            if len(server.requests) == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.3)
            return fake.answer(request, context)

        server.answer = slowly
        before = signal.signal(
            signal.SIGUSR1, lambda *_: sizes.append(client.restore(jpeg, timeout=20).image.size)
        )
        try:
            assert client.restore(jpeg, timeout=20).image.size == (64, 48)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert sizes == [(64, 48)]


def test_time_that_runs_out_for_the_caller(server, fake, jpeg):
    """asyncio's own limit raises asyncio's own error, and the client goes on."""

    async def main():
        async with AsyncPikFixClient(server.url, retry=QUICK) as client:
            server.answer = hang
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.restore(jpeg), 0.3)
            server.answer = fake.answer
            assert (await client.restore(jpeg)).image.size == (64, 48)

    asyncio.run(main())


def test_a_loop_that_ends_under_a_call(server, fake, jpeg, until):
    loop = asyncio.new_event_loop()
    server.answer = hang
    client = AsyncPikFixClient(server.url)
    task = loop.create_task(client.restore(jpeg))

    async def begun():
        while not server.requests:
            await asyncio.sleep(0.01)

    loop.run_until_complete(begun())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    server.answer = fake.answer
    with pytest.raises(WrongLoopError, match="has ended"):
        asyncio.run(client.restore(jpeg))
    asyncio.run(client.close())


def test_clients_left_open_are_collected_in_silence(server, jpeg, recwarn):
    async def main():
        client = AsyncPikFixClient(server.url)
        await client.restore(jpeg)
        assert await AsyncPikFixClient(server.url).is_ready()

    asyncio.run(main())
    PikFixClient(server.url).restore(jpeg)
    gc.collect()
    assert [str(one.message) for one in recwarn] == []


def test_results_and_options_go_to_other_processes(server, jpeg):
    with PikFixClient(server.url) as client:
        restored, info = client.restore(jpeg), client.server_info()
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(ForkedClientError, match="make a client in each process"):
                copied(client)
    assert restored.image.size == (64, 48)
    for one in (restored, info, Timeout(), Limits(), Retry(), Tls(server_name="x")):
        assert pickle.loads(pickle.dumps(one)) == one
        assert copy.deepcopy(one) == one
