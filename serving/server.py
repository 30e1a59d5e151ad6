"""A supervised tritonserver for Python: started, waited for, watched, restarted, ended.

Every server runs under a launcher process of its own (see `launcher`), so that it ends with its
owner whatever ends the owner, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from pikfix.serving import launcher, preflight, processes
from pikfix.serving.arguments import Arguments, Endpoint
from pikfix.serving.errors import ServingError
from pikfix.serving.health import Health, canary
from pikfix.serving.start_log import StartLog
from pikfix.serving.supervisor import Supervisor

logger = logging.getLogger("pikfix.serving")

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 120.0
_STOP_LIMIT_S = launcher.EXIT_TIMEOUT_S + launcher.KILL_AFTER_S + 1.0
_PORT_ATTEMPTS = 3
# A server whose sockets cannot be seen from here, as one behind a wrapper, is then taken for open.
_LISTENS_AFTER_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "::1"}

# The working directory, which `-c` puts first on the path, may hold a folder named like a module.
_LAUNCHER = (
    "import sys; sys.path = [p for p in sys.path if p]; "
    "from pikfix.serving.tritonserver import main; sys.exit(main())"
)


class RunningServer:
    """A server that answers; a context manager that ends it.

    Made by `start_server`. `grpc_url`, `http_url` and `metrics_url` say where; `log_file` holds
    what the server printed.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        ports: tuple[int, int, int],
        address: str,
        log_file: Path | None,
        words: Sequence[str],
    ):
        self.model_repository = model_repository
        self.grpc_port, self.http_port, self.metrics_port = ports
        self.address = address
        self.restarts = 0
        self._words = list(words)
        self._own_log = log_file is None
        self.log_file = _temporary_log() if log_file is None else log_file
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parent_pipe = -1
        self._instances: list[str] = []
        self._log_start = 0
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._exit_code: int | None = None
        self._problem: str | None = None
        self._supervisor: Supervisor | None = None

    @property
    def _host(self) -> str:
        host = _ANY_ADDRESS.get(self.address, self.address)
        return f"[{host}]" if ":" in host else host

    @property
    def grpc_url(self) -> str:
        """host:port for gRPC clients of this machine."""
        return f"{self._host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """host:port for HTTP clients of this machine."""
        return f"{self._host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """The Prometheus endpoint."""
        return f"http://{self._host}:{self.metrics_port}/metrics"

    @property
    def server_pid(self) -> int | None:
        """Process number of tritonserver itself; None while there is none."""
        process = self._process
        if process is None or process.poll() is not None:
            return None
        found = processes.children(process.pid)
        return found[0].pid if found else None

    def stubs(self) -> dict[int, str]:
        """Processes of the model instances: number -> instance (as in `restore_0_0`)."""
        pid = self.server_pid
        return {} if pid is None else processes.stubs(pid)

    def dead_instances(self) -> list[str]:
        """Instances that were there when the server became ready and are gone."""
        alive = list(self.stubs().values())
        gone = []
        for name in self._instances:
            if name in alive:
                alive.remove(name)
            else:
                gone.append(name)
        return gone

    def peak_memory(self) -> int:
        """Upper bound of what server and steps together have ever held, in bytes."""
        pid = self.server_pid
        return 0 if pid is None else processes.peak_memory(processes.tree(pid))

    def cpu_seconds(self) -> float:
        """Processor time that server and steps have used since their start."""
        pid = self.server_pid
        return 0.0 if pid is None else processes.cpu_seconds(processes.tree(pid))

    def is_running(self) -> bool:
        """Whether the server's process lives; it may still be unable to answer."""
        process = self._process
        return process is not None and process.poll() is None

    def health(self, timeout_s: float = 10.0) -> Health:
        """Look for dead instances, then send a canary request through the ensemble."""
        if not self.is_running():
            return Health("down", self._problem or "the server is not running")
        dead = self.dead_instances()
        if dead:
            return Health("unhealthy", f"the process of {', '.join(dead)} has died")
        return canary(self.grpc_url, timeout_s)

    def start(self, ready_timeout_s: float) -> None:
        """Start the process and wait until it is ready; ServingError says why it is not."""
        with self._lock:
            self._spawn()
            try:
                self._wait_until_ready(ready_timeout_s)
            except BaseException as error:
                self._end(force=True)
                if self._own_log and str(self.log_file) not in str(error):
                    shutil.rmtree(self.log_file.parent, ignore_errors=True)
                raise
            self._instances = list(self.stubs().values())

    def restart(self, ready_timeout_s: float = READY_TIMEOUT_S) -> None:
        """End the server without waiting for requests, and start it again on the same ports."""
        with self._lock:
            if self._stopping.is_set():
                raise ServingError("the server has been stopped")
            self._end(force=True)
            self.restarts += 1
            self.start(ready_timeout_s)

    def supervise(self) -> None:
        """Watch the server from a thread and restart it when a step or the server dies."""
        self._supervisor = Supervisor(self)
        self._supervisor.start()

    def give_up(self, problem: str) -> None:
        """End the server for good; `wait` returns 1 and `health` tells the problem."""
        self._problem = problem
        logger.error("%s", problem)
        with self._lock:
            self._end(force=True)
            self._exit_code = 1
            self._finished.set()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server has ended for good; its exit code, None after the timeout."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._finished.wait(0.1):
            if self._supervisor is None and not self.is_running():
                return self.stop()
            if end is not None and time.monotonic() >= end:
                return None
        return self._exit_code

    def stop(self, *, force: bool = False) -> int:
        """End the server within ten seconds and return its exit code.

        Requests in flight may finish, up to seven seconds; with `force` they may not.
        """
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.cancel()
        with self._lock:
            if not self._finished.is_set():
                # An instance that died would keep the shutdown waiting until its timeout.
                force = force or bool(self.dead_instances())
                was_running = self.is_running()
                ended = self._end(force=force)
                # Killed on request is no failure.
                self._exit_code = 0 if ended is None or (force and was_running) else ended
                self._finished.set()
        code = self._exit_code or 0
        if self._own_log and self._problem is None and code == 0:
            shutil.rmtree(self.log_file.parent, ignore_errors=True)
        return code

    def hurry(self) -> None:
        """End a stop that is under way at once; safe in a signal handler."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGINT)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _flags(self) -> list[str]:
        return [
            f"--model-repository={self.model_repository}",
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            *_listen_words(self.address),
            *self._words,
        ]

    def _spawn(self) -> None:
        reader, self._parent_pipe = os.pipe()
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("ab") as log:
                self._log_start = log.tell()
                # A session of its own: ctrl-C must reach the owner alone, who then stops it.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _LAUNCHER, *self._flags()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, launcher.PARENT_FD: str(reader)},
                    pass_fds=(reader,),
                    start_new_session=True,
                )
        except OSError as error:
            raise ServingError(
                f"the server's log {self.log_file} cannot be written: "
                f"{error.strerror or error}; give another place, or make room"
            ) from error
        finally:
            os.close(reader)

    def _end(self, *, force: bool) -> int | None:
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                if force:
                    # The launcher takes a second signal for "now"; equal signals that are both
                    # pending would arrive as one.
                    process.send_signal(signal.SIGINT)
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        with contextlib.suppress(OSError):
            os.close(self._parent_pipe)
        self._parent_pipe = -1
        self._process = None
        return process.returncode

    def _wait_until_ready(self, timeout_s: float) -> None:
        assert self._process is not None
        end = time.monotonic() + timeout_s
        answers_since: float | None = None
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServingError(self._log().why_ended())
            if self._stopping.is_set():
                raise ServingError("the server has been stopped")
            if answers_since is not None or self._is_ready():
                answers_since = answers_since or time.monotonic()
                if self._listens() or time.monotonic() - answers_since > _LISTENS_AFTER_S:
                    return
            # The server itself ends only once every other model has been loaded.
            failure = self._log().failure()
            if failure is not None:
                raise ServingError(failure)
            time.sleep(0.1)
        raise ServingError(
            f"the server was not ready after {timeout_s:.0f} s{self._log().still_loading()}; "
            f"its log is {self.log_file}"
        )

    def _log(self) -> StartLog:
        return StartLog(self.log_file, self._log_start)

    def _listens(self) -> bool:
        """Whether every endpoint is open: gRPC, the first, answers before the others are."""
        pid = self.server_pid
        if pid is None:
            return False
        wanted = {endpoint.port for endpoint in Arguments(self._flags()).endpoints(self.address)}
        return wanted <= processes.listening_ports(processes.tree(pid))

    def _is_ready(self) -> bool:
        # gRPC would wait longer and longer between its attempts to connect.
        try:
            with socket.create_connection((self._host.strip("[]"), self.grpc_port), 1.0):
                pass
        except OSError:
            return False
        client = grpc.InferenceServerClient(self.grpc_url)
        try:
            return bool(client.is_server_ready(client_timeout=5.0))
        except InferenceServerException:
            return False
        finally:
            client.close()


def _temporary_log() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="pikfix-server-")) / "tritonserver.log"
    except OSError as error:
        raise ServingError(
            f"no temporary folder for the server's log: {error.strerror or error}; "
            "make room, or set TMPDIR to a folder that can be written to"
        ) from error


def _listen_words(address: str) -> list[str]:
    """The words that let all three endpoints listen on an address; IPv6 has two spellings."""
    grpc_address, other = address, address
    if ":" in address:
        grpc_address, other = f"[{address}]", f"ipv6:{address}"
    return [f"--grpc-address={grpc_address}"] + [
        f"--{name}-address={other}" for name in ("http", "metrics")
    ]


def start_server(
    model_repository: Path | str,
    *,
    grpc_port: int = 0,
    http_port: int = 0,
    metrics_port: int = 0,
    address: str = LOOPBACK,
    ready_timeout_s: float = READY_TIMEOUT_S,
    log_file: Path | None = None,
    supervise: bool = True,
    words: Sequence[str] = (),
) -> RunningServer:
    """Start a tritonserver and return once it is ready.

    Args:
        model_repository: folder of models, as `pikfix export` leaves it.
        grpc_port: TCP port of the gRPC endpoint; 0 takes a free one.
        http_port: the same for HTTP.
        metrics_port: the same for Prometheus metrics.
        address: where to listen, IPv4 or IPv6. The embedded server belongs on loopback.
        ready_timeout_s: how long the models may take to load.
        log_file: where the server's output goes (appended); by default a temporary file, kept
            if the server fails.
        supervise: restart the server when it or a step's process dies.
        words: further command-line words for tritonserver.

    Raises:
        ServingError: one line that says what is wrong and what to do.
    """
    repository = str(model_repository)
    address = address.removeprefix("[").removesuffix("]")
    preflight.check_repository(repository)
    chosen = (grpc_port, http_port, metrics_port)
    for attempt in range(_PORT_ATTEMPTS):
        free = iter(preflight.free_ports(chosen.count(0)))
        grpc_p, http_p, metrics_p = (port or next(free) for port in chosen)
        # Before anything can mistake another server's answers for those of the new one.
        preflight.check_ports(
            Endpoint(name, address, port, shared=False)
            for name, port in (("grpc", grpc_p), ("http", http_p), ("metrics", metrics_p))
        )
        server = RunningServer(
            Path(repository).resolve(),
            ports=(grpc_p, http_p, metrics_p),
            address=address,
            log_file=log_file,
            words=words,
        )
        try:
            server.start(ready_timeout_s)
        except ServingError as error:
            taken = re.search(r"port (\d+) on \S+ is in use", str(error))
            again = taken is not None and int(taken[1]) not in chosen
            if not again or attempt == _PORT_ATTEMPTS - 1:
                raise
            continue
        if supervise:
            server.supervise()
        return server
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_until_signal(server: RunningServer) -> int:
    """Wait in the main thread until the server ends or a signal asks for it; the exit code.

    SIGINT, SIGTERM and SIGHUP end the server cleanly; a second one ends it at once.
    """
    asked = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            server.hurry()
        asked.set()

    before = {number: signal.signal(number, on_signal) for number in launcher.STOP_SIGNALS}
    try:
        while not asked.wait(0.2):
            code = server.wait(0)
            if code is not None:
                return code
        return server.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
