"""Which tritonserver runs: a real one on the PATH, else the one in the nvidia-pytriton wheel."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pikfix.serving.errors import ServingError
from pikfix.serving.links import Link

INSTALL_COMMAND = 'pip install "pikfix[server]"'
BACKENDS = Path(__file__).parent / "backends"
STUB = "triton_python_backend_stub"

# Set for a server from the PATH: if that is a wrapper that calls our console script again, the
# second call takes the embedded server instead of finding the wrapper once more.
GUARD = "PIKFIX_TRITONSERVER_FROM_PATH"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started.

    embedded: from the nvidia-pytriton wheel, needing the environment and backend folder below.
    """

    binary: Path
    embedded: bool
    version: str | None = None
    root: Path | None = None
    libraries: tuple[Path, ...] = ()


def _is_own_script(path: Path) -> bool:
    """Whether a file on the PATH is this project's console script, of any environment."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head.startswith(b"#!") and b"pikfix.serving" in head


def on_path() -> Path | None:
    """A tritonserver on the PATH that is not our own console script."""
    if os.environ.get(GUARD):
        return None
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = shutil.which("tritonserver", path=folder or os.curdir)
        if found and not _is_own_script(Path(found)):
            return Path(found).absolute()
    return None


def libpython() -> Path | None:
    """The shared libpython of the running interpreter, which the stub links to; None without."""
    # The one name that the stub asks for; what a build calls its library besides is of no use.
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [
        str(sysconfig.get_config_var("LIBDIR") or ""),
        f"{sys.base_prefix}/lib",
        f"{sys.base_exec_prefix}/lib",
        "/usr/lib",
        "/usr/local/lib",
    ]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders += [f"{folder}/{multiarch}" for folder in folders[:4] if folder and multiarch]
    # Where the loader looks first: an installation may bring its own.
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *folders]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def stub_for_this_python(root: Path) -> Path | None:
    """The wheel's python stub for the running interpreter; None if the wheel has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / STUB
    return stub if stub.is_file() else None


def wheel() -> Installation | None:
    """The server of the nvidia-pytriton wheel; None if the wheel is not installed.

    Found through the wheel's metadata: importing pytriton would configure its logging and load
    its own dependencies.
    """
    try:
        distribution = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(distribution.locate_file("pytriton/tritonserver")))
    binary = root / "bin" / "tritonserver"
    if not binary.is_file():
        return None
    libraries = Path(str(distribution.locate_file("nvidia_pytriton.libs")))
    return Installation(binary, True, distribution.version, root, (libraries,))


def find() -> Installation:
    """The tritonserver to run; ServingError says what to install where there is none usable."""
    external = on_path()
    if external is not None:
        return Installation(external, embedded=False)
    found = wheel()
    if found is None or found.root is None:
        raise ServingError(
            "no tritonserver on the PATH and nvidia-pytriton is not installed; "
            f"run `{INSTALL_COMMAND}`"
        )
    name, release = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in release.split(".")[:2]) < (2, 35):
        raise ServingError(
            f"the embedded tritonserver needs glibc 2.35 or later and this system has {release}; "
            "use the NGC container nvcr.io/nvidia/tritonserver"
        )
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if stub_for_this_python(found.root) is None:
        raise ServingError(
            f"nvidia-pytriton {found.version} has no stub for {python}; use Python 3.10 to 3.13"
        )
    library = libpython()
    if library is None:
        raise ServingError(
            f"the shared library of {python} was not found; install it (Debian and Ubuntu: "
            f"libpython{sys.version_info.major}.{sys.version_info.minor}) or use a Python built "
            "with --enable-shared"
        )
    return Installation(
        found.binary, True, found.version, found.root, (*found.libraries, library.parent)
    )


def environment(installation: Installation, link: Link) -> dict[str, str]:
    """The environment to start the server in; `link` gives plain paths for what it lists."""
    env = dict(os.environ)
    if not installation.embedded:
        env[GUARD] = "1"
        return env
    given = [env["LD_LIBRARY_PATH"]] if env.get("LD_LIBRARY_PATH") else []
    libraries = [str(link(folder)) for folder in installation.libraries]
    env["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *given])
    # The stub's embedded interpreter finds its environment as `python3` on the PATH; without
    # this, a virtual environment that is not activated would lose its packages. It looks for
    # `pyvenv.cfg` one folder up, so the link is to that folder.
    # Steps multiply pictures by 3 x 3 matrices: threads for that, in every process, would keep the
    # cores of all others busy with waiting for each other.
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    scripts = Path(sys.executable).parent
    if os.pathsep in str(scripts):
        scripts = link(scripts.parent) / scripts.name
    env["PATH"] = os.pathsep.join([str(scripts), env.get("PATH", os.defpath)])
    return env


def check_stub(stub: Path, env: Mapping[str, str]) -> None:
    """Raise ServingError if the stub cannot be run at all.

    The server would not notice and wait for it without limit. Without arguments a stub says so
    and ends with 1, before Python starts in it.
    """
    try:
        done = subprocess.run(
            [str(stub)], env=env, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    else:
        if done.returncode == 1:
            return
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"it ended with {done.returncode}"
    raise ServingError(
        f"the server's python steps cannot start: {reason}; `pikfix doctor` says what this Python "
        "lacks, or use the NGC container nvcr.io/nvidia/tritonserver"
    )


def build_backends(installation: Installation, folder: Path) -> Path:
    """Make the embedded server's backend directory under `folder` and return it.

    Files are copied: the stub belongs beside libtriton_python.so, which site-packages may be
    read-only for and other environments' processes share, and the server refuses a link that
    leads out of the directory.
    """
    assert installation.root is not None
    stub = stub_for_this_python(installation.root)
    assert stub is not None
    backends = folder / "backends"
    python = backends / "python"
    shutil.copytree(
        installation.root / "backends" / "python",
        python,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(stub, python / STUB)
    (python / STUB).chmod(0o755)
    for backend in BACKENDS.iterdir():
        if (backend / "model.py").is_file():
            shutil.copytree(
                backend, backends / backend.name, ignore=shutil.ignore_patterns("__pycache__")
            )
    return backends
