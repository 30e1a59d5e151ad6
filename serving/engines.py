"""Whether the server's TensorRT can load the engines of a repository.

An engine is for the version of TensorRT that built it, or for that and newer ones; Triton would say
so in a page of log, once for each model. The export enters what it needs into the model's config.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pikfix.serving.arguments import Arguments, absolute, is_remote
from pikfix.serving.embedded import Installation
from pikfix.serving.errors import ServingError

PARAMETER = "tensorrt"
"""Of a model's config: `==11.0.0.114` or `>=11.0.0.114`."""

# By expressions, since a launcher has nothing but Python's own library to read a config with.
_NEED = re.compile(
    rf'key:\s*"{PARAMETER}"\s*value:?\s*{{\s*string_value:\s*"(==|>=)(\d+(?:\.\d+)+)'
)
_TENSORRT = re.compile(r'^\s*backend:\s*"tensorrt"', re.MULTILINE)

COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"
"""Engines for more than one version carry code, which a server runs when it is told to only."""

_BACKEND = Path("tensorrt", "libtriton_tensorrt.so")
_USUAL_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib")

Version = tuple[int, ...]


@dataclass(frozen=True)
class Need:
    """What a model's engine needs.

    model: its name.
    version: of the TensorRT that built it, as that wrote it.
    newer: whether newer ones load it, too.
    """

    model: str
    version: str
    newer: bool

    def loads_on(self, server: Version) -> bool:
        """Whether the server's version, `(major, minor, patch)`, can load it."""
        built = tuple(int(part) for part in self.version.split(".")[: len(server)])
        return server >= built if self.newer else server == built


def needs(repository: str) -> list[Need]:
    """What the engines of a repository need; of other models, nothing is known."""
    if is_remote(repository):
        return []
    found = []
    for path in sorted(Path(absolute(repository)).glob("*/config.pbtxt")):
        try:
            text = path.read_text(errors="replace")
        except OSError:  # the server says what is wrong
            continue
        written = _NEED.search(text)
        if written and _TENSORRT.search(text):
            found.append(Need(path.parent.name, written[2], written[1] == ">="))
    return found


def backend_folder(installation: Installation, arguments: Arguments) -> Path | None:
    """The server's backends; None in the wheel, which has the python backend alone."""
    if arguments.has("--backend-directory"):
        return Path(arguments.last("--backend-directory", ""))
    if installation.embedded:
        return None
    return installation.binary.resolve().parent.parent / "backends"


def tensorrt_version(backends: Path) -> Version | None:
    """The version of TensorRT that a server's backend links to, by its library's file name.

    Returns:
        `(major, minor, patch)`; None where there is no such backend, or its library is not found.
    """
    try:
        linked = re.search(rb"libnvinfer\.so\.\d+", (backends / _BACKEND).read_bytes())
    except OSError:
        return None
    if linked is None:
        return None
    name = linked[0].decode()
    for folder in _library_folders(backends / _BACKEND.parent, name):
        with contextlib.suppress(OSError):
            library = Path(folder, name).resolve(strict=True)
            version = re.search(r"\.so\.(\d+)\.(\d+)\.(\d+)", library.name)
            if version:
                return tuple(int(part) for part in version.groups())
    return None


def _library_folders(backend: Path, name: str) -> list[str]:
    """Where the loader looks for a library, in its order."""
    cached = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=True
        )
        cached = re.findall(rf"^\s*{re.escape(name)} .*=> (.+)/[^/]+$", done.stdout, re.MULTILINE)
    given = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return [folder for folder in (*given, str(backend), *cached, *_USUAL_FOLDERS) if folder]


def check_engines(repository: str, installation: Installation, arguments: Arguments) -> None:
    """Raise ServingError for engines that the server has no TensorRT for."""
    wanted = needs(repository)
    if not wanted:
        return
    backends = backend_folder(installation, arguments)
    models = ", ".join(need.model for need in wanted)
    if backends is None or not (backends / _BACKEND).is_file():
        where = "the embedded server" if installation.embedded else str(installation.binary)
        raise ServingError(
            f"{models} of {repository}: these are TensorRT engines, and {where} has no backend for "
            "them: serve them with NVIDIA's container (deploy/), or export with --runtime pytorch"
        )
    version = tensorrt_version(backends)
    if version is None:
        return
    for need in wanted:
        if not need.loads_on(version):
            raise ServingError(
                f"{need.model} of {repository} was built by TensorRT {need.version} and the server "
                f"has {'.'.join(map(str, version))}: take a container with "
                f"{'that or a newer version' if need.newer else 'exactly that version'}, or export "
                "again in one like this"
            )


def words_for(arguments: Arguments) -> list[str]:
    """The flag that a repository's engines want and that was not given."""
    given = any("version-compatible" in value for value in arguments.all("--backend-config"))
    wanted = any(need.newer for place in arguments.repositories for need in needs(place))
    return [COMPATIBLE] if wanted and not given else []
