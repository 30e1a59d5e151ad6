"""What this environment has for serving, gathered without starting anything.

A bug report begins with it. Nothing here raises for what it finds: it is reported as absent.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikfix.serving import embedded, engines, preflight
from pikfix.serving.arguments import Arguments
from pikfix.serving.errors import ServingError

PACKAGES = (
    "pikfix",
    "numpy",
    "Pillow",
    "tritonclient",
    "grpcio",
    "protobuf",
    "nvidia-pytriton",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "torch",
    "triton",
    "torch-tensorrt",
    "safetensors",
)
# What the largest operators use where it is there; in the order of /proc/cpuinfo's names.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Python:
    """The interpreter, and what the server's python steps need of it."""

    version: str
    executable: str
    libpython: str | None
    stub: str | None


@dataclass(frozen=True)
class Server:
    """The tritonserver that would run; `problem` says why none would."""

    path: str | None
    source: str | None  # "PATH" or "nvidia-pytriton"
    version: str | None
    problem: str | None


@dataclass(frozen=True)
class Precisions:
    """What the networks gain from on this CPU.

    good: of "fp32", "bf16" and "int8".
    training: what `pikfix train` takes.
    because: the instructions that decided it, or a sentence where there are none.
    """

    good: tuple[str, ...]
    training: str
    because: str


@dataclass(frozen=True)
class Machine:
    """Hardware and system, as far as serving depends on it. Sizes in bytes.

    precisions: None without PyTorch, which is what would compute in them.
    """

    system: str
    glibc: str | None
    cores: int
    cpu: str | None
    cpu_flags: tuple[str, ...]
    precisions: Precisions | None
    memory: int
    shm_size: int
    shm_free: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Repository:
    """A model repository's state; `problem` is what a start would fail with."""

    path: str
    models: tuple[str, ...]
    versions: dict[str, tuple[int, ...]]
    manifest: dict[str, Any] | None
    problem: str | None


@dataclass(frozen=True)
class Environment:
    """Everything `pikfix doctor` prints; `problems` are one line each, empty when it can serve."""

    python: Python
    packages: dict[str, str | None]
    server: Server
    machine: Machine
    repository: Repository | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def packages() -> dict[str, str | None]:
    """Versions of the packages that matter; None for those that are not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def python() -> Python:
    """The running interpreter."""
    library = embedded.libpython()
    wheel = embedded.wheel()
    stub = None
    if wheel is not None and wheel.root is not None:
        stub = embedded.stub_for_this_python(wheel.root)
    return Python(
        platform.python_version(),
        sys.executable,
        None if library is None else str(library),
        None if stub is None else str(stub),
    )


def server() -> Server:
    """The tritonserver that the console script would run."""
    try:
        found = embedded.find()
    except ServingError as error:
        return Server(None, None, None, str(error))
    source = "nvidia-pytriton" if found.embedded else "PATH"
    return Server(str(found.binary), source, found.version, None)


def _cpu() -> tuple[str | None, tuple[str, ...]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None, ()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return fields.get("model name"), tuple(flag for flag in CPU_FLAGS if flag in flags)


def _precisions() -> Precisions | None:
    try:
        from pikfix.kernels import cpu  # noqa: PLC0415
    except (ImportError, OSError):  # PyTorch is absent, or one of its libraries is
        return None
    return Precisions(cpu.good_precisions(), cpu.training_precision(), cpu.reason())


def _gpus() -> tuple[str, ...]:
    """Names of NVIDIA GPUs with their driver and memory, as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def machine() -> Machine:
    """This machine."""
    name, release = platform.libc_ver()
    cpu, flags = _cpu()
    size, free = preflight.shared_memory()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        glibc=release if name == "glibc" else None,
        cores=len(os.sched_getaffinity(0)),
        cpu=cpu,
        cpu_flags=flags,
        precisions=_precisions(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shm_size=size,
        shm_free=free,
        gpus=_gpus(),
    )


def repository(path: Path) -> Repository:
    """A model repository: its models, the exported versions and the export's manifest."""
    try:
        preflight.check_repository(str(path))
        problem = None
    except ServingError as error:
        problem = str(error)
    try:
        models = tuple(preflight.models_in(path))
        versions = {name: tuple(preflight.exported_versions(path / name)) for name in models}
    except OSError:
        models, versions = (), {}
    manifest = None
    try:
        loaded = json.loads((path / "manifest.json").read_text())
        if isinstance(loaded, dict):
            manifest = loaded
        else:
            problem = problem or f"{path / 'manifest.json'} is no JSON object; export again"
    except FileNotFoundError:
        pass  # a repository that was not written by `pikfix export`
    except (OSError, ValueError) as error:
        problem = problem or f"{path / 'manifest.json'} cannot be read ({error}); export again"
    return Repository(str(path.resolve()), models, versions, manifest, problem)


def _slow_precisions(manifest: dict[str, Any], precisions: Precisions) -> str | None:
    """A warning where a repository was exported in what this CPU is not good at."""
    if manifest.get("device") != "cpu":
        return None
    asked = {str(manifest.get("precision"))}
    measured = manifest.get("measured")
    chosen = measured.get("chosen") if isinstance(measured, dict) else None
    if isinstance(chosen, dict):
        asked |= {str(choice).rpartition(" ")[2] for choice in chosen.values()}
    slow = sorted(asked & {"bf16", "int8"} - set(precisions.good))
    if not slow:
        return None
    return (
        f"the repository was exported in {' and '.join(slow)}, which this CPU is not good at; "
        "export it here again, with --runtime auto"
    )


def examine(model_repository: Path | None = None) -> Environment:
    """Gather the environment, with the repository's state if one is named."""
    found_python, found_server, found_machine = python(), server(), machine()
    found_packages = packages()
    found_repository = None if model_repository is None else repository(model_repository)
    problems, warnings = [], []
    if found_server.problem:
        problems.append(found_server.problem)
    if found_server.source == "nvidia-pytriton" and not (
        found_packages["onnxruntime"] or found_packages["onnxruntime-gpu"]
    ):
        problems.append(f"the embedded server needs onnxruntime; run `{embedded.INSTALL_COMMAND}`")
    if found_repository is not None and found_repository.problem:
        problems.append(found_repository.problem)
    if found_repository is not None and found_repository.manifest and found_machine.precisions:
        slow = _slow_precisions(found_repository.manifest, found_machine.precisions)
        warnings += [slow] if slow else []
    if model_repository is not None:
        try:
            engines.check_engines(str(model_repository), embedded.find(), Arguments([]))
        except ServingError as error:
            problems += [str(error)] if str(error) != found_server.problem else []
    try:
        warning = preflight.check_shared_memory()
        if warning:
            warnings.append(warning)
    except ServingError as error:
        problems.append(str(error))
    try:
        preflight.check_ports(Arguments([]).endpoints("127.0.0.1"))
    except ServingError as error:
        warnings.append(str(error))
    return Environment(
        found_python,
        found_packages,
        found_server,
        found_machine,
        found_repository,
        tuple(problems),
        tuple(warnings),
    )
