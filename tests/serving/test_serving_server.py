"""`start_server`: readiness, health, supervision, and ends of every kind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable

import pytest
from tritonclient.utils import InferenceServerException

from pikfix.serving import health as health_module
from pikfix.serving import supervisor as supervisor_module
from pikfix.serving.errors import ServingError
from pikfix.serving.health import Health, _judge
from pikfix.serving.server import RunningServer, start_server
from pikfix.serving.supervisor import Supervisor

pytestmark = pytest.mark.serving


def until(probe: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if probe():
            return True
        time.sleep(0.05)
    return False


def test_running_server_says_where_and_how_it_is(toy_server):
    assert toy_server.health() == Health("healthy", None, pytest.approx(0.1, abs=2))
    with urllib.request.urlopen(toy_server.metrics_url, timeout=5) as answer:
        assert b"nv_inference_count" in answer.read()
    assert sorted(toy_server.stubs().values()) == [
        "colorize_0_0",
        "merged_0_0",
        "restore_0_0",
        "similarity_0_0",
        "tone_0_0",
    ]
    assert 50e6 < toy_server.peak_memory() < 6e9


def test_listens_on_loopback_alone(toy_server):
    """Every other address of this machine refuses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.1", 9))  # sends nothing; picks the outgoing address
        other = probe.getsockname()[0]
    if other.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    for port in (toy_server.grpc_port, toy_server.http_port, toy_server.metrics_port):
        socket.create_connection(("127.0.0.1", port), 2).close()
        with pytest.raises(OSError):
            socket.create_connection((other, port), 2)


def test_dead_step_is_found_and_the_server_restarted(toy_repository, nothing_left, caplog):
    """Readiness says nothing; the dead process and the canary do."""
    from tritonclient import grpc

    with start_server(toy_repository) as server:
        address = server.grpc_url
        victim = next(pid for pid, name in server.stubs().items() if name == "similarity_0_0")
        os.kill(victim, signal.SIGKILL)
        assert until(server.dead_instances, 2) and server.dead_instances() == ["similarity_0_0"]
        with grpc.InferenceServerClient(address) as client:
            assert client.is_server_ready()
        assert server.health().problem == "the process of similarity_0_0 has died"
        assert until(lambda: server.restarts == 1 and server.health().healthy, 30)
        assert server.grpc_url == address
    assert "the process of similarity_0_0 has died; restarting it" in caplog.text
    assert nothing_left() == []


def test_canary_finds_a_dead_step_alone(toy_repository):
    with start_server(toy_repository, supervise=False) as server:
        victim = next(pid for pid, name in server.stubs().items() if name == "colorize_0_0")
        os.kill(victim, signal.SIGKILL)
        found = health_module.canary(server.grpc_url)
        assert found.state == "unhealthy"
        assert "Stub process 'colorize_0_0' is not healthy" in str(found.problem)


def test_killed_server_is_started_again(identity_repository, nothing_left):
    with start_server(identity_repository) as server:
        assert server.server_pid is not None
        os.kill(server.server_pid, signal.SIGKILL)
        assert until(lambda: server.restarts == 1 and server.health().healthy, 30)
    assert nothing_left() == []


def test_unsupervised_server_that_dies_ends_the_wait(identity_repository, tmp_path, nothing_left):
    log = tmp_path / "log"
    with start_server(identity_repository, supervise=False, log_file=log) as server:
        assert server.wait(0.2) is None
        assert server.server_pid is not None
        os.kill(server.server_pid, signal.SIGKILL)
        assert server.wait(20) == 128 + signal.SIGKILL
        assert server.health().state == "down"
    assert nothing_left() == []


OWNER = """
    import os, sys
    from pathlib import Path
    from pikfix.serving.server import start_server

    server = start_server(sys.argv[1], log_file=Path(sys.argv[2]))
    print(server.server_pid, flush=True)
    os._exit(0)
"""


def test_server_ends_with_its_owner(identity_repository, tmp_path, nothing_left):
    """An owner that ends without a word, as a killed one does."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(OWNER),
            str(identity_repository),
            str(tmp_path / "log"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) > 0
    assert until(lambda: not nothing_left(), 12), nothing_left()


def test_model_that_cannot_load_is_one_line(identity_repository, tmp_path, nothing_left):
    (identity_repository / "identity/1/model.py").write_text("raise RuntimeError('no luck')\n")
    with pytest.raises(ServingError, match=r"model identity failed to load: .*no luck") as error:
        start_server(identity_repository, log_file=tmp_path / "log")
    assert "\n" not in str(error.value)
    assert nothing_left() == []


def test_port_in_use_is_named(identity_repository):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(ServingError, match=f"grpc port {port} on 127.0.0.1 is in use"):
            start_server(identity_repository, grpc_port=port)


def test_not_ready_in_time(identity_repository, tmp_path, nothing_left):
    with pytest.raises(
        ServingError, match=r"not ready after 0 s(: still loading identity)?; its log is /"
    ):
        start_server(identity_repository, ready_timeout_s=0.2, log_file=tmp_path / "log")
    assert nothing_left() == []


def test_canary_of_a_server_that_is_not_there():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    found = health_module.canary(f"127.0.0.1:{port}", timeout_s=5)
    assert found.state == "down"


def test_tiny_png_is_a_picture():
    import io

    from PIL import Image

    with Image.open(io.BytesIO(health_module.tiny_png())) as picture:
        picture.load()
        assert (picture.mode, picture.size) == ("L", (32, 32))


class Scripted:
    """A server whose checks answer from a script; the supervisor cannot tell the difference."""

    grpc_url = "127.0.0.1:1"

    def __init__(self) -> None:
        self.running, self.dead, self.used = True, [], 0.0
        self.answers = [Health("healthy")]
        self.restarts, self.given_up = 0, ""
        self.fails_to_restart = False

    def is_running(self) -> bool:
        return self.running

    def dead_instances(self) -> list[str]:
        return self.dead

    def cpu_seconds(self) -> float:
        return self.used

    def health(self, timeout_s: float = 1.0) -> Health:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def restart(self) -> None:
        if self.fails_to_restart:
            raise ServingError("no such luck")
        self.restarts += 1
        self.running = True

    def give_up(self, problem: str) -> None:
        self.given_up = problem


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""
    now = [1000.0]
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervisor_module, "completed", lambda _url: 0)
    return now


def problems(supervisor: Supervisor, clock: list[float], checks: int) -> list[str | None]:
    found = []
    for _ in range(checks):
        clock[0] += supervisor_module.CANARY_EVERY_S
        found.append(supervisor.find_problem())
    return found


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("in ensemble 'pikfix_photo', [decode_photo] busy: 16 photos are being worked on", "busy"),
        ("in ensemble 'pikfix_photo', Exceeds maximum queue size", "busy"),
        ("failed to connect to all addresses", "down"),
        ("Server not ready", "unhealthy"),
    ],
)
def test_want_of_room_is_no_illness(text, state):
    """Every photo of a large batch in flight would have a healthy server restarted."""
    error = InferenceServerException(text, status="StatusCode.UNAVAILABLE")
    assert _judge(error).state == state


def test_busy_is_no_reason_to_restart_while_work_goes_on(clock):
    server = Scripted()
    server.answers = [Health("busy", "no answer in time")]
    supervisor = Supervisor(server)
    for _ in range(100):
        server.used += supervisor_module.CANARY_EVERY_S * 0.9
        assert problems(supervisor, clock, 1) == [None]
    stuck = problems(supervisor, clock, 25)
    assert stuck[:19] == [None] * 19
    assert "nothing has been finished for 600 s" in str(stuck[-1])


def test_wrong_answers_restart_after_the_third(clock):
    server = Scripted()
    bad = Health("unhealthy", "pikfix answered without restored_l")
    server.answers = [bad, bad, Health("healthy"), bad, bad, bad]
    found = problems(Supervisor(server), clock, 6)
    assert found == [None] * 5 + ["pikfix answered without restored_l"]


def test_dead_instance_is_believed_when_seen_twice(clock):
    server = Scripted()
    supervisor = Supervisor(server)
    server.dead = ["restore_0_0"]
    assert supervisor.find_problem() is None
    assert supervisor.find_problem() == "the process of restore_0_0 has died"


def test_endless_restarts_end(monkeypatch):
    monkeypatch.setattr(supervisor_module, "CHECK_EVERY_S", 0.0)
    server = Scripted()
    restart = server.restart

    def restart_and_die() -> None:
        restart()
        server.running = False

    server.restart = restart_and_die  # type: ignore[method-assign]
    server.running = False
    Supervisor(server).run()
    assert server.restarts == supervisor_module.RESTART_LIMIT
    assert "given up after 5 restarts in 10 minutes" in server.given_up


def test_failed_restart_is_told(monkeypatch):
    monkeypatch.setattr(supervisor_module, "CHECK_EVERY_S", 0.0)
    server = Scripted()
    server.running, server.fails_to_restart = False, True
    Supervisor(server).run()
    assert server.given_up.endswith("and the restart failed: no such luck")


def test_restart_after_a_stop_is_refused(identity_repository):
    server: RunningServer = start_server(identity_repository)
    assert server.stop() == 0
    assert not server.log_file.exists()
    with pytest.raises(ServingError, match="stopped"):
        server.restart()
    assert server.stop() == 0
