"""The model repository on disk: a new version of every sub-net appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import render
from pikfix.export.errors import ExportError
from pikfix.photos import write_atomically
from pikfix.protocol.names import DEFAULT_SYSTEM

MANIFEST = "manifest.json"
_KEPT_VERSIONS = 2
"""The new version and the one before it, to go back to."""

_SOURCE = Path(__file__).resolve().parent.parent / "model_repository"
"""Where the python steps are, in a checkout and in an installed package alike."""

_STAGING_PREFIX = ".pikfix-export-"


@dataclass(frozen=True)
class Manifest:
    """What a repository holds and where it came from.

    checkpoint: file name, SHA-256, preset and the checkpoint's own metadata.
    models: for each sub-net its version, file hash and parity figures.
    target: the server its configs are for.
    tested_on: for each sub-net, the GPU or CPU that the parity gate ran it on.
    measured: with the runtime "auto", what was measured and chosen for each sub-net.
    others: by their names, the manifests of the other systems that the repository holds.
    """

    created: str
    checkpoint: dict[str, Any]
    runtime: str
    device: str
    precision: str
    versions: dict[str, str]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    target: str = "embedded"
    tested_on: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """Yield a temporary folder on the repository's file system, removed on leaving.

    It lies beside the repository: Triton takes every folder inside for a model.

    Raises:
        ExportError: the folder cannot be written.
    """
    repository = repository.resolve()
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=repository.parent))
    except OSError as error:
        raise ExportError(
            f"cannot write beside {repository} ({error.strerror}): choose another folder with -o"
        ) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(
    repository: Path, staged: Path, configs: dict[str, pb.ModelConfig], manifest: Manifest
) -> Manifest:
    """Move staged sub-nets into the repository as their next versions.

    Args:
        repository: created, with the python steps and ensembles, if it does not exist.
        staged: holds one folder of artifacts per sub-net, on the same file system.
        configs: of all models.
        manifest: what to record; versions are filled in.

    Returns:
        The manifest as written.

    Raises:
        ExportError: something could not be written; what had been published is taken back.
    """
    system = manifest.checkpoint["system"]
    manifest.others.update(others_beside(repository, system, manifest.target, manifest.device))
    published: list[Path] = []
    previous = {name: _read_config(repository / name) for name in manifest.models}
    try:
        fixed = {name: c for name, c in configs.items() if name not in manifest.models}
        _lay_fixed_models(repository, fixed)
        for name, entry in manifest.models.items():
            version = max(_versions(repository / name), default=0) + 1
            target = repository / name / str(version)
            target.parent.mkdir(exist_ok=True)
            (staged / name).replace(target)
            published.append(target)
            _write(repository / name / "config.pbtxt", render(configs[name]))
            entry["version"] = version
        _write(repository / MANIFEST, json.dumps(manifest.to_dict(), indent=2) + "\n")
    except OSError as error:
        _take_back(repository, published, previous)
        raise ExportError(
            f"cannot write {error.filename or repository} ({error.strerror}): "
            "the repository is as it was before"
        ) from error
    for name in manifest.models:
        for version in sorted(_versions(repository / name))[:-_KEPT_VERSIONS]:
            shutil.rmtree(repository / name / str(version), ignore_errors=True)
    return manifest


def others_beside(
    repository: Path, system: str, target: str, device: str
) -> dict[str, dict[str, Any]]:
    """The manifests of the systems that a repository holds beside one that is exported into it.

    Args:
        repository: may not exist.
        system: that is exported.
        target: the server it is for.
        device: where it will run.

    Raises:
        ExportError: another was exported for another server or device, and the steps that are
            code, which all share, are configured for one.
    """
    try:
        there = read_manifest(repository).to_dict()
    except ExportError:  # none, or a damaged one, which is written anew
        return {}
    found: dict[str, dict[str, Any]] = there.pop("others")
    found[there["checkpoint"].get("system", DEFAULT_SYSTEM)] = there
    found.pop(system, None)
    for name, other in found.items():
        if (other["target"], other["device"]) != (target, device):
            raise ExportError(
                f"{repository} holds {name} for target {other['target']} and device "
                f"{other['device']}: export {system} for the same, or into another folder with -o"
            )
    return found


def read_manifest(repository: Path) -> Manifest:
    """Read what a repository holds.

    Raises:
        ExportError: nothing was exported into it, or its manifest is damaged.
    """
    path = repository / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ExportError(
            f"{repository} has no {MANIFEST}: run `pikfix export CHECKPOINT -o {repository}`"
        ) from error
    except (OSError, TypeError, ValueError) as error:
        raise ExportError(f"{path} cannot be read ({error}): export again") from error


def write_fixed_configs(repository: Path, configs: Mapping[str, pb.ModelConfig]) -> None:
    """Write the configs of python steps and ensembles, which are committed."""
    for name, config in configs.items():
        _write(repository / name / "config.pbtxt", render(config))


def _lay_fixed_models(repository: Path, configs: Mapping[str, pb.ModelConfig]) -> None:
    repository.mkdir(exist_ok=True)
    for name, config in configs.items():
        # Triton wants a version folder even where there is nothing to put into it.
        version = repository / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        if config.platform != "ensemble":
            _write(version / "model.py", (_SOURCE / name / "1" / "model.py").read_text())
    write_fixed_configs(repository, configs)


def _versions(model: Path) -> Sequence[int]:
    if not model.is_dir():
        return ()
    return [int(entry.name) for entry in model.iterdir() if entry.name.isdigit()]


def _read_config(model: Path) -> str | None:
    path = model / "config.pbtxt"
    return path.read_text() if path.is_file() else None


def _take_back(repository: Path, published: list[Path], previous: dict[str, str | None]) -> None:
    for target in published:
        shutil.rmtree(target, ignore_errors=True)
    for name, text in previous.items():
        path = repository / name / "config.pbtxt"
        if text is None:
            path.unlink(missing_ok=True)
        elif path.read_text() != text:
            _write(path, text)


def _write(path: Path, text: str) -> None:
    """Replace a file's text at once; a file that has it already is left alone."""
    if path.is_file() and path.read_text() == text:
        return
    write_atomically(path, text.encode())


def parse_config(text: str) -> pb.ModelConfig:
    """Parse the text of a config.pbtxt."""
    return text_format.Parse(text, pb.ModelConfig())
