"""A client in the wrong place or with the wrong arguments: one tree of errors, no foreign one."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from fake_triton import QUICK, hang
from PIL import Image

from pikfix.client import (
    AsyncPikFixClient,
    ClientClosedError,
    ForkedClientError,
    InvalidInputError,
    Limits,
    PikFixClient,
    PikFixError,
    Retry,
    Timeout,
    Tls,
    WrongLoopError,
)


def one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 900
    return str(error)


def test_a_second_event_loop(server, jpeg):
    client = AsyncPikFixClient(server.url)
    assert asyncio.run(client.restore(jpeg)).image.size == (64, 48)
    for call in (lambda: client.restore(jpeg), client.ensure_ready, client.server_info):
        with pytest.raises(WrongLoopError, match="has ended; make one AsyncPikFixClient") as caught:
            asyncio.run(call())
        one_line(caught.value)
    asyncio.run(client.close())
    with pytest.raises(ClientClosedError, match="closed"):
        asyncio.run(client.restore(jpeg))


def test_another_thread_with_its_own_loop(server, jpeg):
    caught = []

    async def main():
        async with AsyncPikFixClient(server.url) as client:
            await client.restore(jpeg)

            def elsewhere():
                try:
                    asyncio.run(client.restore(jpeg))
                except Exception as error:
                    caught.append(error)

            await asyncio.to_thread(elsewhere)
            assert (await client.restore(jpeg)).image.size == (64, 48)

    asyncio.run(main())
    assert [type(one) for one in caught] == [WrongLoopError]
    assert "is another" in one_line(caught[0])


def test_a_cancelled_task_leaves_the_client_usable(server, fake, jpeg, until):
    async def main():
        async with AsyncPikFixClient(server.url, retry=QUICK) as client:
            server.answer = hang
            task = asyncio.create_task(client.restore(jpeg))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.answer = fake.answer
            assert (await client.restore(jpeg)).image.size == (64, 48)

    asyncio.run(main())


def test_closing_while_a_task_waits(server, jpeg):
    async def main():
        client = AsyncPikFixClient(server.url, retry=Retry.never())
        server.answer = hang
        task = asyncio.create_task(client.restore(jpeg))
        while not server.requests:
            await asyncio.sleep(0.01)
        await client.close()
        await client.close()
        with pytest.raises(ClientClosedError):
            await task
        with pytest.raises(ClientClosedError):
            await client.restore(jpeg)

    asyncio.run(main())


def _in_child(client, jpeg, results):
    try:
        client.restore(jpeg, timeout=5)
    except Exception as error:
        results.put((type(error).__name__, str(error)))
    with PikFixClient(client.url) as own:
        results.put(own.restore(jpeg, timeout=10).image.size)
    client.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("used", [True, False], ids=["used", "new"])
def test_a_forked_process(server, jpeg, used):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with PikFixClient(server.url) as client:
        if used:
            client.restore(jpeg)
        child = context.Process(target=_in_child, args=(client, jpeg, results))
        child.start()
        name, said = results.get(timeout=20)
        assert name == "ForkedClientError"
        assert "make a client in each process" in said
        assert results.get(timeout=20) == (64, 48)
        child.join(20)
        assert child.exitcode == 0
        assert client.restore(jpeg).image.size == (64, 48)


def _in_a_child_of_a_loop(url, jpeg, results):
    async def own():
        async with AsyncPikFixClient(url) as client:
            await client.restore(jpeg, timeout=5)

    try:
        asyncio.run(own())
    except PikFixError as error:
        results.put((type(error).__name__, str(error)))
    with PikFixClient(url) as client:
        results.put(client.restore(jpeg, timeout=10).image.size)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_beside_an_open_asyncio_client(server, jpeg):
    """gRPC's asyncio waits for ever in the child, where its thread is missing."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    async def main():
        async with AsyncPikFixClient(server.url) as client:
            await client.restore(jpeg)
            child = context.Process(
                target=_in_a_child_of_a_loop, args=(server.url, jpeg, results), daemon=True
            )
            child.start()
            said = await asyncio.to_thread(results.get, timeout=20)
            size = await asyncio.to_thread(results.get, timeout=20)
            await asyncio.to_thread(child.join, 20)
            assert (await client.restore(jpeg)).image.size == (64, 48)
            return said, size, child.exitcode

    (name, text), size, code = asyncio.run(main())
    assert name == "ForkedClientError"
    assert "forked while another client for asyncio was open" in text
    assert size == (64, 48)
    assert code == 0


@pytest.mark.parametrize("kind", [PikFixClient, AsyncPikFixClient])
def test_a_client_is_not_pickled(kind):
    with pytest.raises(ForkedClientError, match="make a client in each process"):
        pickle.dumps(kind("localhost:1"))


def test_another_thread_may_use_the_blocking_client(server, jpeg):
    found = []
    with PikFixClient(server.url) as client:
        thread = threading.Thread(target=lambda: found.append(client.restore(jpeg).image.size))
        thread.start()
        thread.join(20)
    assert found == [(64, 48)]


def test_ctrl_c_leaves_the_client_usable(server, fake, jpeg):
    server.answer = hang
    with PikFixClient(server.url, retry=QUICK) as client:

        def press():
            while not server.requests:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.restore(jpeg, timeout=30)
        assert time.monotonic() - start < 10
        thread.join()
        server.answer = fake.answer
        assert client.restore(jpeg).image.size == (64, 48)


AT_EXIT = """
import atexit, sys, asyncio
from pikfix.client import AsyncPikFixClient, PikFixClient, PikFixError

kind, url, photo = sys.argv[1:]
client = (PikFixClient if kind == "sync" else AsyncPikFixClient)(url)

def late():
    try:
        if kind == "sync":
            client.restore(photo, timeout=5)
        else:
            asyncio.run(client.restore(photo, timeout=5))
    except PikFixError as error:
        print("PikFixError:", error)
    else:
        print("restored")

atexit.register(late)
"""


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_at_the_end_of_the_program(server, jpeg, tmp_path, kind):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(jpeg)
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, kind, server.url, str(photo)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    # Some versions of Python still start threads here.
    assert done.stdout.strip() == "restored" or "shutting down" in done.stdout


FOREIGN = [
    RuntimeError("Task got Future attached to a different loop"),
    RuntimeError("Event loop is closed"),
    RuntimeError("cannot schedule new futures after interpreter shutdown"),
    ValueError("Cannot invoke RPC on closed channel!"),
    TypeError("something"),
    AttributeError("'NoneType' object has no attribute 'call'"),
    asyncio.InvalidStateError(),
    grpc.aio.UsageError("Channel is closed."),
    grpc.aio.InternalError("CANCELLED"),
    KeyError("x"),
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda error: repr(error)[:40])
def test_no_foreign_exception_comes_through(kind, server, jpeg, foreign, monkeypatch):
    """Whatever gRPC and tritonclient raise, a caller sees the tree, with the cause behind it."""
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio

    def fail(*args, **kwargs):
        raise foreign

    async def fail_later(*args, **kwargs):
        raise foreign

    monkeypatch.setattr(triton.InferenceServerClient, "infer", fail)
    monkeypatch.setattr(triton_aio.InferenceServerClient, "infer", fail_later)
    with kind(server.url) as client, pytest.raises(PikFixError) as caught:
        client.restore(jpeg)
    assert caught.value.__cause__ is foreign
    assert server.url in one_line(caught.value)


def closed_image():
    image = Image.open(io.BytesIO(b"P5 1 1 255\nx"))
    image.close()
    return image


@pytest.mark.parametrize(
    "arguments",
    [
        {"photo": None},
        {"photo": 5},
        {"photo": ["a.jpg"]},
        {"photo": io.BytesIO(b"x")},
        {"photo": "a\0b.jpg"},
        {"photo": np.zeros((4, 4, 4), np.uint8)},
        {"photo": np.array(["a"], dtype=object)},
        {"photo": closed_image()},
        {"reference": 5},
        {"reference": [None]},
        {"reference": {"a.jpg"}},
        {"color": "yes"},
        {"color": None},
        {"force_color": 1},
        {"format": 3},
        {"format": ["png"]},
        {"format": np.array(["png", "jpeg"])},
        {"quality": "95"},
        {"quality": None},
        {"quality": 9.5},
        {"timeout": "5"},
        {"timeout": [5]},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": Timeout()},
    ],
    ids=lambda one: "-".join(f"{name}={value!r}"[:30] for name, value in one.items()),
)
def test_wrong_arguments_are_value_errors(kind, server, jpeg, arguments):
    arguments = {"photo": jpeg, **arguments}
    with kind(server.url) as client, pytest.raises(ValueError) as caught:
        client.restore(**arguments)
    assert isinstance(caught.value, InvalidInputError) or "timeout" in arguments
    one_line(caught.value)
    assert server.requests == []


def test_a_very_long_timeout_is_no_overflow(kind, server, jpeg):
    with kind(server.url) as client:
        assert client.restore(jpeg, timeout=1e300).image.size == (64, 48)


@pytest.mark.parametrize("kind", [PikFixClient, AsyncPikFixClient])
@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind(None),
        lambda kind: kind(b"localhost:8001"),
        lambda kind: kind(8001),
        lambda kind: kind(timeout=5),
        lambda kind: kind(limits=5),
        lambda kind: kind(retry=3),
        lambda kind: kind(tls=True),
        lambda kind: kind(headers="token"),
        lambda kind: kind(headers={"a b": "c"}),
        lambda kind: kind(headers={5: "c"}),
        lambda kind: kind(headers={"token": 5}),
        lambda kind: kind(headers={"token": "a\nb"}),
        lambda kind: Timeout(request="5"),
        lambda kind: Timeout(connect=None),
        lambda kind: Limits(message_bytes="1"),
        lambda kind: Retry(attempts="4"),
        lambda kind: Retry(attempts=2.5),
        lambda kind: Tls(root_certificates=5),
    ],
)
def test_wrong_options_are_value_errors(kind, make):
    with pytest.raises(ValueError) as caught:
        make(kind)
    one_line(caught.value)


def test_header_names_have_no_case(kind, server, jpeg):
    with kind(server.url, headers={"Authorization": "Bearer x"}) as client:
        client.restore(jpeg)
    assert server.metadata[0]["authorization"] == "Bearer x"
