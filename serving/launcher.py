"""Runs one tritonserver as a child, ends it cleanly, and leaves nothing of it behind.

The launcher stays beside the server instead of replacing itself with it: only a process that
outlives the server can kill its orphaned stubs and remove its /dev/shm regions after a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from pikfix.serving import embedded, engines, preflight
from pikfix.serving.arguments import Arguments, Endpoint
from pikfix.serving.errors import ServingError
from pikfix.serving.links import Links
from pikfix.serving.rundir import RunFolder, sweep
from pikfix.serving.startup import EVERY_S, StartWatch

# With these a stop ends within ten seconds: tritonserver waits this long for requests in flight,
# then the launcher kills what is left.
EXIT_TIMEOUT_S = 7
KILL_AFTER_S = 2.0

# The read end of a pipe whose write end a supervising Python process holds: its end of file is
# that process's death, whatever killed it.
PARENT_FD = "PIKFIX_PARENT_FD"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def default_words(arguments: Arguments, is_embedded: bool) -> list[str]:
    """Flags added before the user's own, so that the user's win.

    The embedded server (2.51) is exposed to the CVE-2025-23319 chain and so listens on loopback.
    Keepalive: servers close connections that ping more often than every 300 s by default; the
    client pings less often than every 10 s.
    """
    words = []
    if is_embedded:
        words += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
        if not arguments.has("--http-address"):
            words.append("--metrics-address=127.0.0.1")
    words += [
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--grpc-http2-min-recv-ping-interval-without-data=10000",
    ]
    return words


def prepare(
    arguments: Arguments, installation: embedded.Installation, run: RunFolder
) -> tuple[list[str], dict[str, str]]:
    """Fill the run's folder; the server's command line and environment.

    Raises ServingError where the folder cannot be filled or the stub in it cannot be run.
    """
    links = Links(run.path / "links")
    words = default_words(arguments, installation.embedded)
    try:
        env = embedded.environment(installation, links)
        if installation.embedded and not arguments.has("--backend-directory"):
            backends = embedded.build_backends(installation, run.path)
            embedded.check_stub(backends / "python" / embedded.STUB, env)
            words.append(f"--backend-directory={backends}")
        if not any("shm-region-prefix-name" in v for v in arguments.all("--backend-config")):
            words.append(f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}")
        words += engines.words_for(arguments)
        words += arguments.with_absolute_repositories(links)
    except OSError as error:  # shutil.Error is one, with a list of reasons and no number
        raise ServingError(
            f"the server's files cannot be put into {run.path.parent}: "
            f"{error.strerror or 'copying failed'}; make room, or set TMPDIR to another place"
        ) from error
    return [str(installation.binary), *words], env


def check(arguments: Arguments, installation: embedded.Installation) -> list[str]:
    """Everything that can be known to fail before a start; ServingError, or warnings."""
    for repository in arguments.repositories:
        preflight.check_repository(repository)
        preflight.check_names(repository, every_backend=installation.embedded)
        engines.check_engines(repository, installation, arguments)
    preflight.check_shell()
    preflight.check_ports(arguments.endpoints(default_address(installation)))
    warnings = (preflight.check_limits(), preflight.check_shared_memory())
    return [warning for warning in warnings if warning]


def default_address(installation: embedded.Installation) -> str:
    """Where the server listens if no flag says so."""
    return "127.0.0.1" if installation.embedded else "0.0.0.0"


def launch(words: Sequence[str], warn: Callable[[str], None]) -> int:
    """Run a server until it ends; its exit code, or 128 + signal if a signal killed it.

    Raises ServingError before the start if it cannot succeed, or where a stub dies in it.
    """
    arguments = Arguments(words)
    installation = embedded.find()
    if arguments.help:
        env = embedded.environment(installation, link=lambda path: path)
        return subprocess.call([str(installation.binary), *words], env=env)
    sweep()
    for warning in check(arguments, installation):
        warn(warning)
    grace = arguments.integer("--exit-timeout-secs", EXIT_TIMEOUT_S) + KILL_AFTER_S
    # The handlers stand before there is anything to clean up.
    with _signals() as signals, RunFolder() as run:
        command, env = prepare(arguments, installation, run)
        if signals[1]:
            return 128 + signals[1][0]
        endpoints = arguments.endpoints(default_address(installation))
        return _supervise(command, env, run.lock_fd, grace, signals, endpoints=endpoints)


def _die_with_parent(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded before the fork

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(128 + signal.SIGTERM)

    return in_child


@contextlib.contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """A descriptor that becomes readable on a stop signal or a child's end, and the stops."""
    received: list[int] = []

    def on_stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    def on_child(_number: int, _frame: FrameType | None) -> None:
        """Nothing to do: the signal's arrival wakes the loop."""

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, on_stop) for number in STOP_SIGNALS}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, on_child)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, received
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _supervise(
    command: list[str],
    env: dict[str, str],
    lock_fd: int,
    grace: float,
    signals: tuple[int, list[int]],
    *,
    endpoints: Sequence[Endpoint],
) -> int:
    parent_fd = int(env.pop(PARENT_FD, "-1"))
    wakeup, stops = signals
    # Orphaned stubs become children of this process, which can then see them end; PID 1 of a
    # container often reaps nothing.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A session of its own: a terminal's ctrl-C reaches the launcher alone, which passes on
    # one signal, and the server with its stubs can be killed as a group.
    child = subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        pass_fds=(lock_fd,),
        preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509  one thread here
    )
    watched = [wakeup] + ([parent_fd] if parent_fd >= 0 else [])
    asked = 0  # stop requests answered so far
    kill_at: float | None = None
    watch = StartWatch(child.pid, endpoints)
    problem: str | None = None
    while not _has_ended(child.pid):
        wait = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        if kill_at is None and problem is None and not watch.over:
            wait = EVERY_S
            problem = watch.problem()
            if problem is not None:
                kill_at, wait = time.monotonic(), 0.0
        readable, _, _ = select.select(watched, [], [], wait)
        if wakeup in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        if parent_fd in readable:
            watched.remove(parent_fd)
            stops.append(signal.SIGTERM)
        if len(stops) > asked:
            if asked == 0:
                child.send_signal(signal.SIGTERM)
                kill_at = time.monotonic() + grace
            if len(stops) > 1:
                kill_at = time.monotonic()
            asked = len(stops)
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill_group(child.pid)
            kill_at = None
    # The child is not reaped yet, so its group's number cannot belong to others.
    _kill_group(child.pid)
    code = child.wait()
    _wait_for_group(child.pid)
    if problem is not None:
        raise ServingError(problem)
    if code < 0:
        return 128 - code
    return code


def _has_ended(pid: int) -> bool:
    """Whether the child has ended, without reaping it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _wait_for_group(group: int, limit_s: float = 2.0) -> None:
    """Reap killed stubs, so that none is left to recreate what is about to be removed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            reaped, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return
        if not reaped:
            time.sleep(0.02)


def fail(message: str) -> None:
    """Print one line on stderr."""
    print(f"tritonserver: {message}", file=sys.stderr, flush=True)
