"""What the GPU campaign brings along: a trimmed server, references, configs, one protobuf module.

Made on a developer's machine, where everything is installed; unpacked on the GPU's, where nothing
of it is and no network either.
"""

# The exporter is imported where the bundle is made: the machine that uses it lacks its packages.
# ruff: noqa: PLC0415

from __future__ import annotations

import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

import gpu_networks
from gpu_rows import Plan

_NUMPY = "1.26.4"
"""The wheel's python stub cannot work with numpy 2."""

_CONFIG_MODULE = "model_config_pb2.py"
EXTENSIONS = "lib-dynload"
"""Folder of the server's archive with the extension modules of the library of Python."""


def prepare(plan: Plan, bundle: Path, python: str, library: Path | None, packed: bool) -> int:
    """Fill an empty folder; returns its size in bytes.

    Args:
        plan: what the campaign will measure.
        bundle: the folder, made anew.
        python: version of Python on the machine with the GPU, "3.12".
        library: its shared library, where that machine may lack it.
        packed: compress what is large.
    """
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    for name in plan.networks:
        _write_configs(plan, name, bundle / f"repository-{name}")
    first = next(iter(plan.networks))
    if plan.networks[first] is None:
        path = bundle / gpu_networks.REFERENCE_FILE
        gpu_networks.write_references(plan.checkpoint, path, max(96, plan.parity_side))
    _write_config_module(bundle / "site")
    with tempfile.TemporaryDirectory() as folder:
        server = Path(folder) / "server"
        _trim_server(server, python)
        if library is not None:
            _add_library(library.resolve(), server, python)
        _store(server, bundle / "server", packed)
        if python != f"{sys.version_info.major}.{sys.version_info.minor}" or _numpy_is_new():
            numpy = Path(folder) / "numpy1"
            _fetch_numpy(numpy, python)
            _store(numpy, bundle / "numpy1", packed)
    return sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())


def unpack(plan: Plan) -> None:
    """Put the bundle's archives under the campaign's folder; what is there already stays."""
    if plan.bundle is None:
        return
    for name in ("numpy1", "server"):  # the server last: who waits for it has all
        target = plan.out / name
        if target.exists():
            continue
        archive = plan.bundle / f"{name}.tar.xz"
        staged = target.with_name(f".{name}")
        shutil.rmtree(staged, ignore_errors=True)
        if archive.is_file():
            with tarfile.open(archive) as tar:
                tar.extractall(staged, filter="data")
        elif (plan.bundle / name).is_dir():
            shutil.copytree(plan.bundle / name, staged)
        else:
            continue
        staged.rename(target)


def _store(folder: Path, target: Path, packed: bool) -> None:
    if not packed:
        shutil.copytree(folder, target)
        return
    with tarfile.open(target.with_name(f"{target.name}.tar.xz"), "w:xz", preset=9) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                tar.add(file, file.relative_to(folder))


def _write_configs(plan: Plan, name: str, folder: Path) -> None:
    """The config of every model, as an export for this device writes them."""
    from tritonclient.grpc import model_config_pb2 as pb

    from pikfix.export.configs import ServingSettings, build_configs, render
    from pikfix.export.runtimes.pytorch import PyTorch
    from pikfix.export.targets import EMBEDDED, Placement

    settings = ServingSettings()
    runtime = PyTorch(settings, "fp16" if plan.on_gpu else "fp32", device="cuda")
    config = gpu_networks.build(plan, name).config
    placement = Placement(EMBEDDED, "cuda")
    runtimes = dict.fromkeys(gpu_networks.STEPS, runtime)
    for model, message in build_configs(
        gpu_networks.SYSTEM, config, runtimes, settings, placement
    ).items():
        if not plan.on_gpu:  # a rehearsal: the same code, on the CPU
            del message.model_warmup[:]
            for group in message.instance_group:
                group.kind = pb.ModelInstanceGroup.KIND_CPU
        (folder / model).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(render(message))


def _write_config_module(site: Path) -> None:
    """The one module of tritonclient that the exporter imports, without the rest."""
    distribution = importlib.metadata.distribution("tritonclient")
    source = Path(str(distribution.locate_file(f"tritonclient/grpc/{_CONFIG_MODULE}")))
    folder = site / "tritonclient" / "grpc"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    shutil.copy(source, folder / _CONFIG_MODULE)


def _trim_server(target: Path, python: str) -> None:
    """tritonserver, its python backend, one stub, and the libraries that these load."""
    distribution = importlib.metadata.distribution("nvidia-pytriton")
    root = Path(str(distribution.locate_file("pytriton/tritonserver")))
    stub = f"python_backend_stubs/{python}/triton_python_backend_stub"
    files = ["bin/tritonserver", "backends/python/libtriton_python.so", stub]
    needed = {}
    for name in files:
        done = subprocess.run(["ldd", root / name], capture_output=True, text=True, check=False)
        for path in re.findall(r"=> (\S+/nvidia_pytriton\.libs/\S+)", done.stdout):
            needed[Path(path).name] = Path(path)
    (target / "lib").mkdir(parents=True)
    for name in [*files, "backends/python/triton_python_backend_utils.py"]:
        place = target / "pytriton" / "tritonserver" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, place)
    libraries = target / "nvidia_pytriton.libs"
    libraries.mkdir()
    for name, path in needed.items():
        if not name.startswith("libpython"):
            shutil.copy(path, libraries / name)
    # The installed package is found by this.
    info = target / f"nvidia_pytriton-{distribution.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: nvidia-pytriton\nVersion: {distribution.version}\n"
    )


def _add_library(library: Path, server: Path, python: str) -> None:
    """The shared library of Python, and the modules that it does not hold itself.

    The machine's interpreter may have them built in, and so no files of them.
    """
    shutil.copy(library, server / "lib" / library.name)
    _strip(server / "lib" / library.name)
    modules = library.parent / f"python{python}" / "lib-dynload"
    target = server / EXTENSIONS
    target.mkdir()
    for module in modules.glob("*.so"):
        if "test" not in module.name:
            shutil.copy(module, target / module.name)
            _strip(target / module.name)


def _strip(library: Path) -> None:
    library.chmod(0o755)
    subprocess.run(["strip", "--strip-unneeded", library], check=False)


def _numpy_is_new() -> bool:
    return int(importlib.metadata.version("numpy").split(".")[0]) > 1


def _fetch_numpy(target: Path, python: str) -> None:
    """Unpack numpy 1 for that Python, without its tests, compilers and headers."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        words += ["--python-version", python, "--platform", "manylinux_2_17_x86_64"]
        words += ["--platform", "manylinux2014_x86_64", f"numpy=={_NUMPY}"]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        data = io.BytesIO(wheel.read_bytes())
    dropped = re.compile(r"/(tests|f2py|distutils|include)/|\.(a|h|pyi|pyx|pxd)$")
    with zipfile.ZipFile(data) as archive:
        for name in archive.namelist():
            # numpy imports its testing package's parts, and distutils only from f2py.
            if not dropped.search(name):
                archive.extract(name, target)


def default_library(python: str) -> Path | None:
    """The libpython of this interpreter, if it is of that version and shared."""
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        return None
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    path = Path(str(sysconfig.get_config_var("LIBDIR") or "")) / name
    return path if ".so" in name and path.is_file() else None
