from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from skimage import data

# Loaded by path: the test folders are no packages.
_SPEC = importlib.util.spec_from_file_location(
    "fake_triton", Path(__file__).with_name("fake_triton.py")
)
fake_triton = importlib.util.module_from_spec(_SPEC)
sys.modules["fake_triton"] = fake_triton
_SPEC.loader.exec_module(fake_triton)


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
