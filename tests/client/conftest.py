from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time

import fake_triton
import pytest
from skimage import data

from pikfix.client import AsyncPikFixClient, PikFixClient


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


@pytest.fixture
def fake():
    """The module with the server and the answers it can give."""
    return fake_triton


@pytest.fixture
def server():
    """A server that is running."""
    running = fake_triton.FakeTriton()
    yield running
    running.close()


@pytest.fixture
def doomed():
    """A server in a process of its own that takes requests and never answers: (url, process)."""
    process = subprocess.Popen(
        [sys.executable, fake_triton.__file__, "hang"], stdout=subprocess.PIPE, text=True
    )
    url = f"127.0.0.1:{int(process.stdout.readline())}"
    yield url, process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def free_url():
    """An address at which nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def jpeg():
    """A JPEG file's bytes, 64 x 48."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).resize((64, 48)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def until():
    """Wait until a condition holds."""

    def wait(condition, seconds=5.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition never came true"
            time.sleep(0.01)

    return wait
