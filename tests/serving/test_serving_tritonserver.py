"""The console script `tritonserver`: which server it runs, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pikfix.serving import processes
from pikfix.serving.preflight import free_ports

pytestmark = pytest.mark.serving

SCRIPT = str(Path(sys.executable).with_name("tritonserver"))


def ports() -> list[str]:
    names = ("http", "grpc", "metrics")
    free = free_ports(3)
    return [f"--{name}-port={port}" for name, port in zip(names, free, strict=True)]


def ask(words: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [SCRIPT, *words], capture_output=True, text=True, timeout=60, check=False, **more
    )


def until(probe: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if probe():
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server started as typed, once it is ready."""
    wanted = ports()
    http = wanted[0].partition("=")[2]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=5):
                return True
        except OSError:
            return False

    with log.open("wb") as out:
        process = subprocess.Popen([SCRIPT, *words, *wanted], stdout=out, stderr=out)
    try:
        assert until(lambda: ready() or process.poll() is not None, 60), log.read_text()
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def server_of(process: subprocess.Popen[bytes]) -> int:
    (child,) = processes.children(process.pid)
    return child.pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_cleanly(identity_repository, tmp_path, nothing_left, number):
    """The relative path, as typed; the environment is not activated."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["PATH"] = "/usr/bin:/bin"
    words = ["--model-repository", os.path.relpath(identity_repository)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment["PATH"])
        with running(words, tmp_path / "log") as process:
            assert nothing_left()
            start = time.monotonic()
            process.send_signal(number)
            assert process.wait(15) == 0
    assert time.monotonic() - start < 10
    assert nothing_left() == []


def test_killed_server_leaves_nothing(identity_repository, tmp_path, nothing_left):
    with running([f"--model-repository={identity_repository}"], tmp_path / "log") as process:
        os.kill(server_of(process), signal.SIGKILL)
        assert process.wait(10) == 128 + signal.SIGKILL
    assert nothing_left() == []


def test_killed_launcher_takes_its_server_with_it(identity_repository, tmp_path, nothing_left):
    """What it leaves, a region or a folder, goes with the next start."""
    with running([f"--model-repository={identity_repository}"], tmp_path / "log") as process:
        server = server_of(process)
        process.kill()
        process.wait()
        assert until(lambda: not Path(f"/proc/{server}").exists(), 12)
    assert not any("tritonserver" in left and "bin" in left for left in nothing_left())
    assert ask(["--model-repository", str(tmp_path / "none"), *ports()]).returncode == 1
    assert nothing_left() == []


BLOCKING_STEP = """
import time


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(600)
"""


def test_second_signal_forces_the_end(make_identity, tmp_path, nothing_left):
    """With a request in flight, one signal waits for it and two do not."""
    repository = make_identity("blocking", BLOCKING_STEP)
    with running([f"--model-repository={repository}"], tmp_path / "log") as process:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")
        port = next(w for w in words if w.startswith("--http-port")).partition("=")[2]
        body = (
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 1, 1], "data": [0]}]}'
        )
        head = f"POST /v2/models/blocking/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        with socket.create_connection(("127.0.0.1", int(port))) as request:
            request.sendall(head.encode() + b"\r\n\r\n" + body)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(3) == 128 + signal.SIGKILL
    assert nothing_left() == []


def test_start_that_cannot_succeed_is_one_line(tmp_path):
    done = ask(["--model-repository", str(tmp_path / "none"), *ports()])
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "`pikfix export checkpoints/compact.safetensors`" in done.stderr


def test_port_in_use_is_one_line(identity_repository):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        done = ask([f"--model-repository={identity_repository}", *ports(), f"--grpc-port={port}"])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"grpc port {port} on 127.0.0.1 is in use" in done.stderr


def test_wheel_absent_is_one_line(tmp_path):
    """An interpreter without site-packages sees the project and nothing else."""
    (tmp_path / "pikfix").mkdir()
    (tmp_path / "pikfix/serving").symlink_to(Path(__file__).parents[2] / "serving")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pikfix.serving.tritonserver", "--model-repository", "x"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "pikfix[server]"' in done.stderr


def fake_server(folder: Path, text: str) -> Path:
    folder.mkdir()
    path = folder / "tritonserver"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_server_on_the_path_comes_first(identity_repository, tmp_path):
    """Flags and exit code pass through; no address is forced on a server of the container."""
    fake_server(tmp_path / "bin", 'printf "%s\\n" "$@"; exit 7')
    own = Path(SCRIPT).parent
    environment = {**os.environ, "PATH": f"{own}:{tmp_path / 'bin'}:/usr/bin:/bin"}
    words = ["--model-repository", str(identity_repository), "--log-verbose=1", *ports()]
    done = ask(words, env=environment)
    assert done.returncode == 7
    given = done.stdout.splitlines()
    assert given[-len(words) :] == words
    assert not any("-address" in word or "--backend-directory" in word for word in given)
    assert any("shm-region-prefix-name=pikfix-" in word for word in given)


def test_wrapper_that_calls_the_script_again_ends_at_the_wheel(tmp_path):
    fake_server(tmp_path / "bin", f'exec "{SCRIPT}" "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(SCRIPT).parent}:/usr/bin:/bin"}
    done = ask(["--help"], env=environment)
    assert (done.stdout + done.stderr).startswith("Usage: tritonserver [options]")


def test_script_is_installed():
    assert shutil.which(SCRIPT)
