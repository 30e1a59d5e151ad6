from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_triton
import pytest
from PIL import Image
from skimage import data

PIKFIX = Path(sys.executable).with_name("pikfix")


@pytest.fixture
def fake():
    return fake_triton


@pytest.fixture
def server():
    running = fake_triton.FakeTriton()
    yield running
    running.close()


@pytest.fixture
def free_url():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


BEFORE = "import os, resource, signal, sys; {}; os.execv(sys.argv[1], sys.argv[1:])"


def start(*words, before=None, **kwargs):
    """Start the installed command, without a terminal; `before` is a statement of its process.

    Not by `preexec_fn`: between a fork and the command, gRPC's threads may end the process.
    """
    kwargs.setdefault("stdout", subprocess.PIPE)
    kwargs.setdefault("stderr", subprocess.PIPE)
    environment = {**os.environ, "PYTHONWARNINGS": "default", **kwargs.pop("env", {})}
    prefix = [] if before is None else [sys.executable, "-c", BEFORE.format(before)]
    command = [*prefix, str(PIKFIX), *map(str, words)]
    return subprocess.Popen(command, text=True, env=environment, **kwargs)


@pytest.fixture
def begin():
    """Start the command and return its process; it is ended with the test."""
    running = []

    def begin_one(*words, **kwargs):
        running.append(start(*words, **kwargs))
        return running[-1]

    yield begin_one
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def pikfix():
    """Run the command; nothing that a user can do may end in a traceback."""

    def run(*words, **kwargs):
        process = start(*words, **kwargs)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


@pytest.fixture
def restore(pikfix, server):
    """Run ``pikfix restore`` against the server."""
    return lambda *words, **kwargs: pikfix("restore", *words, "--url", server.url, **kwargs)


@pytest.fixture
def until():
    """Wait until a condition holds."""

    def wait(condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition never came true"
            time.sleep(0.01)

    return wait


@pytest.fixture
def picture():
    """Write a small picture file and return its path."""

    def write(path, size=(48, 32), seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = data.astronaut()[seed * 8 :]
        format = {".gif": "GIF", ".bmp": "BMP"}.get(path.suffix.lower())
        buffer = io.BytesIO()
        suffixes = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF"}
        format = format or suffixes.get(path.suffix.lower(), "JPEG")
        Image.fromarray(pixels).resize(size).save(buffer, format)
        path.write_bytes(buffer.getvalue())
        return path

    return write
