"""The campaign's server: photos as files through a real tritonserver, networks on the GPU.

It is reached over HTTP with the standard library alone, so that the machine needs no client.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import os
import re
import shutil
import signal
import site
import socket
import statistics
import struct
import subprocess
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_bundle import EXTENSIONS
from gpu_networks import STEPS, build, photo_like, step_of
from gpu_rows import ROOT, Plan, Row, Rows
from PIL import Image

from pikfix.inference import save_step
from pikfix.systems.base import Precision

_READY_SECONDS = 90.0
_OPEN_LOOP_SHARE = 0.7
"""Of the rate that many clients at a time reach: what a server is asked for when it is busy."""


def serve(plan: Plan, rows: Rows) -> None:
    """Every network: load at each concurrency, then an open loop."""
    side = plan.sides[0]
    for name in plan.networks:
        keys = {c: f"{name}, {side} x {side}, {c} at a time" for c in plan.concurrency}
        open_key = f"{name}, {side} x {side}, open loop"
        if all(rows.has(key) for key in (*keys.values(), open_key)):
            continue
        repository = write_repository(plan, name)
        attempt = 1
        while rows.has(f"{name}, start {attempt}") and attempt < 9:  # of an earlier call
            attempt += 1
        server = Server(plan, name, repository)
        try:
            if rows.measure(f"{name}, start {attempt}", server.start) is not None:
                _loads(plan, rows, server, keys, open_key)
        finally:
            server.stop()


class Server:
    """One network's server, with what it is asked."""

    def __init__(self, plan: Plan, name: str, repository: Path) -> None:
        self._plan, self._repository = plan, repository
        self._running = contextlib.ExitStack()
        self.name, self.port = name, 0
        side = plan.sides[0]
        self.files = (picture(side, 1), picture(side, 2, colour=True))

    def start(self) -> Row:
        """Start it; RuntimeError says why it does not."""
        begin = time.monotonic()
        self.port, words = self._running.enter_context(running(self._plan, self._repository))
        return {
            "network": self.name,
            "ready_seconds": time.monotonic() - begin,
            "server": words[0],
            "instances": _instances(self._repository),
        }

    def stop(self) -> None:
        """End it, if it runs."""
        self._running.close()


def _loads(plan: Plan, rows: Rows, server: Server, keys: dict[int, str], open_key: str) -> None:
    facts = {"network": server.name, "side": plan.sides[0]}
    rates = []
    most = max(plan.concurrency)
    rows.measure(
        f"{server.name}, warming {most} at a time",
        functools.partial(
            closed_loop, server.port, server.files, most, plan.warm_seconds, warming=server.name
        ),
    )
    for clients, key in keys.items():
        load = functools.partial(
            closed_loop, server.port, server.files, clients, plan.load_seconds, **facts
        )
        found = rows.measure(key, load)
        if found:
            rates.append(found["photos_per_second"])
    if rates:
        rate = _OPEN_LOOP_SHARE * max(rates)
        rows.measure(
            open_key,
            functools.partial(
                open_loop, server.port, server.files, rate, plan.load_seconds, **facts
            ),
        )


def write_repository(plan: Plan, name: str) -> Path:
    """Configs from the bundle, code from the checkout, weights from the network."""
    assert plan.bundle is not None
    target = plan.out / f"repository-{name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(plan.bundle / f"repository-{name}", target)
    cores = os.cpu_count() or 1
    for step in ("decode_photo", "encode_photo"):
        shutil.copytree(ROOT / "model_repository" / step / "1", target / step / "1")
        config = target / step / "config.pbtxt"
        count = max(1, cores // 2)
        config.write_text(re.sub(r"count: \d+", f"count: {count}", config.read_text()))
    for ensemble in ("pikfix", "pikfix_photo"):
        (target / ensemble / "1").mkdir(exist_ok=True)
    model = build(plan, name)
    precision: Precision = "fp16" if plan.on_gpu else "fp32"
    for step in STEPS:
        (target / step / "1").mkdir(exist_ok=True)
        spec = step_of(model, step)
        save_step(spec.module(model), spec, precision, target / step / "1" / "model.safetensors")
    return target


def _instances(repository: Path) -> dict[str, int]:
    found = {}
    for config in sorted(repository.glob("*/config.pbtxt")):
        counts = re.findall(r"count: (\d+)", config.read_text().split("model_warmup")[0])
        if counts:
            found[config.parent.name] = int(counts[0])
    return found


def environment(plan: Plan) -> dict[str, str]:
    """Where the server finds the bundle's libpython."""
    env = dict(os.environ)
    libraries = [str(plan.out / "server" / "lib"), env.get("LD_LIBRARY_PATH", "")]
    env["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in libraries if path)
    return env


def interpreter(plan: Plan) -> Path:
    """A Python that has the bundle's server and numpy, pikfix, and then what this one has.

    The steps' interpreters ignore PYTHONPATH, and take the environment of `python3` on the PATH.
    """
    folder = plan.out / "venv"
    venv.create(folder, symlinks=True, clear=True)
    paths = [plan.out / name for name in ("server", "numpy1")]
    paths.append(ROOT / "src")
    lines = [str(path) for path in paths if path.is_dir()]
    lines += [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    lines.append(str(plan.out / "server" / EXTENSIONS))  # last: what the machine has goes first
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "campaign.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python3"


@contextlib.contextmanager
def running(plan: Plan, repository: Path) -> Iterator[tuple[int, list[str]]]:
    """A server that answers: its HTTP port, and its own command line."""
    with contextlib.ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in bound]
    words = [f"--model-repository={repository}"]
    names = ("http", "grpc", "metrics")
    words += [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    code = "import sys; from pikfix.serving.tritonserver import main; sys.exit(main())"
    log = plan.out / f"{repository.name}.log"
    # It ends with this process, whatever ends that.
    reader, writer = os.pipe()
    env = environment(plan) | {"PIKFIX_PARENT_FD": str(reader)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [interpreter(plan), "-c", code, *words],
            env=env,
            stdout=stream,
            stderr=stream,
            pass_fds=(reader,),
        )
    os.close(reader)
    try:
        _wait_until_ready(process, ports[0], log)
        yield ports[0], _command_line(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        os.close(writer)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.2)
    lines = log.read_text(errors="replace").splitlines()
    wrong = [line for line in lines if "rror" in line or "tritonserver: " in line] or lines
    raise RuntimeError(f"the server did not start: {wrong[-1][:200] if wrong else 'no output'}")


def _command_line(pid: int) -> list[str]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if entry.name.isdigit() and parent == pid:
                return [word.decode() for word in words]
    return ["unknown"]


def picture(side: int, seed: int, *, colour: bool = False) -> bytes:
    """A JPEG file, grey or in colour."""
    planes = photo_like(1, side, 1, side, seed)
    pixels = planes["reference_lab"][0, 0] if colour else planes["photo_l"][0, 0]
    array = ((pixels.numpy() + 1) * 127.5).round().astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(array.transpose(1, 2, 0) if colour else array).save(written, "jpeg", quality=92)
    return written.getvalue()


def ask(connection: http.client.HTTPConnection, files: tuple[bytes, bytes]) -> bytes:
    """One photo through `pikfix_photo`; RuntimeError with the server's words if it refuses."""
    inputs, binary = [], b""
    for name, data in zip(("photo", "reference"), files, strict=True):
        element = struct.pack("<I", len(data)) + data
        binary += element
        inputs.append(
            {
                "name": name,
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(element)},
            }
        )
    outputs = [{"name": "result", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    connection.request(
        "POST",
        "/v2/models/pikfix_photo/infer",
        head + binary,
        {"Inference-Header-Content-Length": str(len(head))},
    )
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise RuntimeError(body.decode(errors="replace")[:300])
    start = int(response.headers["Inference-Header-Content-Length"])
    (length,) = struct.unpack_from("<I", body, start)
    return body[start + 4 : start + 4 + length]


def _check(port: int, files: tuple[bytes, bytes]) -> None:
    """What is timed is a picture of the photo's size, and in colour."""
    result = Image.open(io.BytesIO(ask(http.client.HTTPConnection("127.0.0.1", port), files)))
    if result.size != Image.open(io.BytesIO(files[0])).size or result.mode != "RGB":
        raise ArithmeticError(f"the result is {result.size} {result.mode}: not timed")


class _Load:
    """Latencies and refusals of many threads."""

    def __init__(self, port: int, files: tuple[bytes, bytes]) -> None:
        self._port, self._files = port, files
        self._lock = threading.Lock()
        self.seconds: list[float] = []
        self.refused: list[str] = []

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def one(self, connection: http.client.HTTPConnection, since: float) -> None:
        try:
            ask(connection, self._files)
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self.refused.append(str(error)[:200])
            return
        with self._lock:
            self.seconds.append(time.monotonic() - since)

    def figures(self, wall: float) -> Row:
        if not self.seconds:
            raise RuntimeError(f"no photo was answered: {(self.refused or ['?'])[0]}")
        tenths = statistics.quantiles([*self.seconds] * 2, n=100)
        return {
            "photos_per_second": len(self.seconds) / wall,
            "p50_ms": 1000 * statistics.median(self.seconds),
            "p95_ms": 1000 * tenths[94],
            "photos": len(self.seconds),
            "refused": len(self.refused),
            "first_refusal": self.refused[0] if self.refused else None,
        }


def closed_loop(
    port: int, files: tuple[bytes, bytes], clients: int, seconds: float, **facts: Any
) -> Row:
    """So many clients, each with one photo on its way at a time."""
    _check(port, files)
    load = _Load(port, files)
    end = time.monotonic() + seconds

    def client() -> None:
        connection = load.connect()
        while time.monotonic() < end:
            load.one(connection, time.monotonic())

    before = statistics_of(port)
    busy = _busy_seconds()
    start = time.monotonic()
    _together([threading.Thread(target=client) for _ in range(clients)])
    wall = time.monotonic() - start
    cores = (_busy_seconds() - busy) / wall
    steps = _difference(before, statistics_of(port))
    return {**facts, "clients": clients, "busy_cores": cores, "steps": steps} | load.figures(wall)


def _busy_seconds() -> float:
    """Of all cores together, since the machine started."""
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    idle = int(words[3]) + int(words[4])
    return (sum(map(int, words[:8])) - idle) / os.sysconf("SC_CLK_TCK")


_PHASES = ("queue", "compute_input", "compute_infer", "compute_output")


def statistics_of(port: int) -> dict[str, dict[str, float]]:
    """What the server counts of each model: requests, runs, and nanoseconds of each phase."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v2/models/stats")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    found = {}
    for model in answer["model_stats"]:
        phases = {phase: float(model["inference_stats"][phase]["ns"]) for phase in _PHASES}
        counts = {"requests": model["inference_count"], "runs": model["execution_count"]}
        found[model["name"]] = phases | counts
    return found


def _difference(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> dict[str, Row]:
    """By model: runs, and milliseconds of a request in each phase."""
    found = {}
    for name, now in after.items():
        then = before.get(name, {})
        gained = {key: value - then.get(key, 0) for key, value in now.items()}
        requests = gained["requests"]
        if requests:
            times = {f"{p}_ms": round(gained[p] / requests / 1e6, 2) for p in _PHASES}
            found[name] = {"requests": requests, "runs": gained["runs"], **times}
    return found


def open_loop(
    port: int, files: tuple[bytes, bytes], rate: float, seconds: float, **facts: Any
) -> Row:
    """Photos at random times, whether earlier ones are answered or not."""
    _check(port, files)
    load = _Load(port, files)
    gaps = np.random.default_rng(0).exponential(1 / rate, max(2, int(rate * seconds)))
    start = time.monotonic()
    due = [start + float(t) for t in np.cumsum(gaps)]
    queue = iter(due)
    lock = threading.Lock()

    def client() -> None:
        connection = load.connect()
        while True:
            with lock:
                when = next(queue, None)
            if when is None:
                return
            time.sleep(max(0.0, when - time.monotonic()))
            load.one(connection, when)  # waiting for a free thread counts, too

    _together([threading.Thread(target=client) for _ in range(min(128, len(due)))])
    return {**facts, "offered_per_second": rate} | load.figures(time.monotonic() - start)


def _together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(plan: Plan, rows: Rows) -> None:
    """The section: it waits for what is unpacked beside the others; no bundle, no server."""
    carried = plan.bundle is not None and any(plan.bundle.glob("server*"))
    while carried and not (plan.out / "server").is_dir() and rows.left() > 0:
        time.sleep(0.2)
    if (plan.out / "server").is_dir():
        serve(plan, rows)
        return

    def absent() -> Row:
        raise FileNotFoundError("no server was carried along: see `gpu_campaign.py --prepare`")

    rows.measure("server", absent)
