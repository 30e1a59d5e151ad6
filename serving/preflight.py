"""Checks before a server starts, so that what is wrong is one line and not a page of log."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from pikfix.serving.arguments import Endpoint, absolute, is_remote
from pikfix.serving.errors import ServingError
from pikfix.serving.links import is_plain

EXPORT_COMMAND = "pikfix export checkpoints/compact.safetensors"
_ENSEMBLE = re.compile(r"^\s*platform\s*:\s*\"ensemble\"", re.MULTILINE)
_STEP = re.compile(r"^\s*model_name\s*:\s*\"([^\"]+)\"", re.MULTILINE)

SHM = Path("/dev/shm")
# Each model instance opens a region of 1 MiB at its start; ten instances and room to answer.
SHM_REQUIRED = 32 << 20
# Regions hold a photo's planes at every step and never shrink: 28 bytes per pixel were measured
# with one photo at a time, 40 once every instance has served one. 512 MiB are 8 megapixels.
SHM_RECOMMENDED = 512 << 20
SHM_BYTES_PER_PIXEL = 64
# With 64 the server of an export fails in its start, with 80 it answers a photo; clients take more.
OPEN_FILES_REQUIRED = 128


def exported_versions(model_dir: Path) -> list[int]:
    """Versions of a model that hold an exported file (model.onnx, model.plan, model.pt2)."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in model_dir.iterdir()
        if entry.name.isdigit() and any(f.is_file() for f in entry.glob("model.*"))
    )


def steps_in(repository: Path, models: Iterable[str]) -> list[str]:
    """Names of the models that a repository's ensembles run, each once, in their order."""
    texts = []
    for name in models:
        config = repository / name / "config.pbtxt"
        text = config.read_text(errors="replace") if config.is_file() else ""
        if _ENSEMBLE.search(text):
            texts.append(text)
    return list(dict.fromkeys(name for text in texts for name in _STEP.findall(text)))


def models_in(repository: Path) -> list[str]:
    """Names of the folders of a repository that have a model's form."""
    return sorted(
        entry.name
        for entry in repository.iterdir()
        if entry.is_dir()
        and not entry.name.startswith(".")
        and ((entry / "config.pbtxt").is_file() or any(v.name.isdigit() for v in entry.iterdir()))
    )


def check_repository(repository: str) -> None:
    """Raise ServingError if the repository is missing, empty, or lacks a step of an ensemble."""
    if is_remote(repository):
        return
    try:
        _check_local(Path(absolute(repository)))
    except ServingError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        where = getattr(error, "filename", None) or repository
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            f"model repository {repository} cannot be read: {where}: {reason}; "
            "give another, or change its permissions"
        ) from None


def _check_local(path: Path) -> None:
    if not path.is_dir():
        raise ServingError(
            f"model repository {path} {'is no folder' if path.exists() else 'does not exist'}; "
            f"in the project's folder, `{EXPORT_COMMAND}` writes one"
        )
    models = models_in(path)
    _check_strays(path, models)
    _check_readable(path, models)
    if not models:
        raise ServingError(f"model repository {path} holds no model; run `{EXPORT_COMMAND}`")
    missing = [name for name in steps_in(path, models) if not exported_versions(path / name)]
    if missing:
        raise ServingError(
            f"model repository {path} has no exported {', '.join(missing)} "
            f"({missing[0]}/1/model.onnx is missing); run `{EXPORT_COMMAND}`"
        )


def _check_readable(repository: Path, models: Iterable[str]) -> None:
    """Raise OSError for the first file that the server would have to read and may not."""
    for name in models:
        for file in [repository / name / "config.pbtxt", *(repository / name).glob("*/model.*")]:
            if file.is_file():
                with file.open("rb"):
                    pass


def check_names(repository: str, *, every_backend: bool) -> None:
    """Raise ServingError for a model whose name the python backend's shell takes apart.

    A link can stand in for the path of a repository, but not for a model's name. With
    `every_backend` all models but ensembles run on the python backend.
    """
    if is_remote(repository):
        return
    path = Path(absolute(repository))
    for name in models_in(path):
        if is_plain(name):
            continue
        config = path / name / "config.pbtxt"
        text = config.read_text(errors="replace") if config.is_file() else ""
        kind = re.search(r"^\s*(?:backend|platform)\s*:\s*\"(\w+)\"", text, re.MULTILINE)
        backend = kind[1] if kind else "python"
        if backend == "python" or (every_backend and backend != "ensemble"):
            raise ServingError(
                f"model repository {path} holds the model {name!r}, whose name the python backend "
                "cannot start: rename it to letters, digits, '.', '_' and '-'"
            )


def check_shell() -> None:
    """Raise ServingError without bash, by which the python backend starts its processes."""
    if shutil.which("bash") is None:
        raise ServingError("the server starts its python steps through bash; install bash")


def _check_strays(repository: Path, models: list[str]) -> None:
    """Triton takes every folder for a model, and one that is none fails the whole start."""
    for entry in sorted(repository.iterdir()):
        if not entry.is_dir() or entry.name in models:
            continue
        # Bytecode of an import from here; nothing is lost with it.
        if entry.name == "__pycache__" and all(f.suffix == ".pyc" for f in entry.iterdir()):
            shutil.rmtree(entry, ignore_errors=True)
        if entry.is_dir():
            raise ServingError(
                f"model repository {repository} holds the folder {entry.name}, which is no model "
                "and fails Triton's start; remove it (or wait for a running export to end)"
            )


def check_ports(endpoints: Iterable[Endpoint]) -> None:
    """Raise ServingError naming the first port that is taken, or used twice."""
    seen: dict[int, str] = {}
    for endpoint in endpoints:
        if not 0 < endpoint.port < 65536:
            raise ServingError(f"{endpoint.name} port {endpoint.port} is not between 1 and 65535")
        if endpoint.port in seen:
            raise ServingError(
                f"port {endpoint.port} is used for both {seen[endpoint.port]} and {endpoint.name}; "
                f"give another --{endpoint.name}-port"
            )
        seen[endpoint.port] = endpoint.name
        if not endpoint.shared:
            _check_free(endpoint)


def _check_free(endpoint: Endpoint) -> None:
    # Triton wants [::1] for gRPC and ipv6:::1 for HTTP.
    host = endpoint.address.removeprefix("ipv6:").removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ServingError(
            f"{endpoint.name} address {endpoint.address!r} is unknown: {error.strerror}; "
            f"give another --{endpoint.name}-address"
        ) from None
    with socket.socket(family, kind, protocol) as probe:
        # Without it, connections of a server that has just ended would block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            where = f"{endpoint.name} port {endpoint.port} on {endpoint.address}"
            if error.errno == errno.EADDRINUSE:
                raise ServingError(
                    f"{where} is in use; stop what listens there or give another "
                    f"--{endpoint.name}-port"
                ) from None
            raise ServingError(
                f"{where} cannot be opened: {os.strerror(error.errno or 0)}; "
                f"give another --{endpoint.name}-port or --{endpoint.name}-address"
            ) from None


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that were free a moment ago; all are held at once, so that no two are equal."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((address, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def check_limits() -> str | None:
    """Raise ServingError where this process's limits end a start; return a warning if they are low.

    Files in shared memory count as files too: the server is killed where one grows larger.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < OPEN_FILES_REQUIRED:
        raise ServingError(
            f"only {files} files may be open at a time and the server needs "
            f"{OPEN_FILES_REQUIRED}; raise the limit (`ulimit -n {OPEN_FILES_REQUIRED}`)"
        )
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size == resource.RLIM_INFINITY or size >= SHM_RECOMMENDED:
        return None
    if size < SHM_REQUIRED:
        raise ServingError(
            f"files may hold at most {size >> 10} KiB here and the server's shared memory needs "
            f"{SHM_REQUIRED >> 10}; raise the limit (`ulimit -f unlimited`)"
        )
    return (
        f"files may hold at most {size >> 20} MiB here: photos above about "
        f"{size / SHM_BYTES_PER_PIXEL / 1e6:.1f} megapixels will end the server; raise the limit "
        "(`ulimit -f unlimited`)"
    )


def shared_memory(path: Path = SHM) -> tuple[int, int]:
    """(size, free) of /dev/shm in bytes; (0, 0) where there is none."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 0, 0
    return status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail


def check_shared_memory(path: Path = SHM) -> str | None:
    """Raise ServingError if /dev/shm cannot hold a start; return a warning if it is small."""
    size, free = shared_memory(path)
    if size == 0 or not os.access(path, os.W_OK | os.X_OK):
        raise ServingError(
            f"{path}, where server and steps exchange pictures, "
            f"{'is missing' if size == 0 else 'cannot be written to'}; mount it "
            f"(`mount -t tmpfs -o mode=1777,size=2g tmpfs {path}`)"
        )
    if free < SHM_REQUIRED:
        raise ServingError(
            f"{path} has {free >> 20} MiB free of {size >> 20} MiB and the server needs "
            f"{SHM_REQUIRED >> 20} MiB to start; enlarge it (docker run --shm-size=2g, "
            "or `mount -o remount,size=2g /dev/shm`)"
        )
    if free < SHM_RECOMMENDED:
        return (
            f"{path} has only {free >> 20} MiB free: photos above about "
            f"{free / SHM_BYTES_PER_PIXEL / 1e6:.1f} megapixels will fail; enlarge it "
            "(docker run --shm-size=2g)"
        )
    return None
