"""Weights that others have published, as checkpoints of this project.

A published file is told by the names in it. What is known of it is a table: which of our modules
has the parameters of which of theirs. Everything else follows from the networks themselves.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pikfix.systems.base import System
from pikfix.systems.checkpoint import UNTRAINED, save_checkpoint
from pikfix.systems.registry import SYSTEMS, system_of

State = Mapping[str, Tensor]
Names = Iterable[tuple[str, str]]
"""Pairs of modules, or of parameters: what we call it, what they call it."""

_WRAPPED = ("model_state", "state_dict", "model")
"""Entries under which a file keeps the parameters beside other things."""
_COUNT = "num_batches_tracked"
"""Of batches that went into running statistics; those of before 2018 lack it."""
ENOUGH = 0.5
"""Share of a release's names that a file must have to be taken for it."""


class ReleaseError(ValueError):
    """A file that cannot be imported; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class Release:
    """A published file of weights.

    part: which part of its system it is.
    title: what it is, for messages.
    names: of a configuration, the table of names.
    place: of its module in the system's model; empty for the model itself.
    configure: the configuration that it belongs to, for the one that its system starts from.
    words: one of them is in the name of the file or of its folder; told apart by nothing else.
    unused: modules and parameters of theirs that no restoration needs.
    never_with: words in the names of files that it was not trained together with.
    required: whether its system is nothing without it.
    left: what of the system stays untrained, for messages; empty for nothing.
    """

    part: str
    title: str
    names: Callable[[Any], Names]
    place: str = ""
    configure: Callable[[Any], Any] = lambda config: config
    words: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    never_with: tuple[str, ...] = ()
    required: bool = True
    left: str = ""


@dataclass(frozen=True)
class Released:
    """A file that was read: its parameters by name, and its SHA-256."""

    path: Path
    state: State
    sha256: str


def read_released(path: Path) -> Released:
    """Read the parameters in a file that PyTorch wrote, without running anything in it.

    Raises:
        ReleaseError: it is missing, damaged, holds code, or holds no parameters.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ReleaseError(f"{path}: no such file; give the published file itself")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Unsupported" in str(error) and "GLOBAL" in str(error):
            what = str(error).split("GLOBAL ", 1)[1].split(" ", 1)[0]
            raise ReleaseError(
                f"{path}: holds code or objects ({what}) beside parameters, which are never "
                "loaded: save its state dict alone, where you trust the file"
            ) from error
        raise ReleaseError(_damaged(path, error)) from error
    except Exception as error:  # every layer of the format has its own errors
        raise ReleaseError(_damaged(path, error)) from error
    for name in _WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ReleaseError(f"{path}: holds no parameters by name; give a file of a state dict")
    state = {}
    for name, value in content.items():
        if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized:
            raise ReleaseError(f"{path}: {name} is no plain tensor; give a file of a state dict")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ReleaseError(f"{path}: {name} holds values that are no numbers; get it again")
        state[str(name)] = value.float() if value.is_floating_point() else value
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return Released(path, state, digest)


def _damaged(path: Path, error: Exception) -> str:
    if path.suffix == ".safetensors":
        return f"{path}: is no file of PyTorch's; give the published .pth or .pt itself"
    if not zipfile.is_zipfile(path):
        return f"{path}: not a whole file of PyTorch's; download or copy it again"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    return f"{path}: cannot be read ({reason}); download or copy it again"


def converted(released: Released, release: Release, network: nn.Module, config: Any) -> State:
    """The parameters of a network, out of a published file.

    The weight of a convolution with spectral norm is divided by that norm as it was stored: the
    same numbers that the published network computes with.

    Raises:
        ReleaseError: one is missing, unknown, or of another shape; the message names it.
    """
    state, where = released.state, f"{released.path}: as {release.title}"
    found, used = {}, set()
    theirs = renamed(network.state_dict(), release.names(config))
    for own, value in network.state_dict().items():
        name = theirs[own]
        if name in state:
            found[own] = state[name]
            used.add(name)
        elif f"{name}_orig" in state:
            found[own] = _folded(state, name, where)
            used |= {f"{name}_{end}" for end in ("orig", "u", "v")}
        elif name.endswith(_COUNT):
            found[own] = torch.zeros((), dtype=torch.int64)
        else:
            raise ReleaseError(f"{where} it lacks {name}; get the published file again")
        if found[own].shape != value.shape:
            raise ReleaseError(
                f"{where} its {name} is {_sides(found[own])}, not {_sides(value)}; get the "
                "published file again"
            )
        if found[own].is_floating_point() != value.is_floating_point():
            raise ReleaseError(f"{where} its {name} is of {found[own].dtype}; get it again")
    odd = sorted(name for name in state if name not in used and not _within(name, release.unused))
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise ReleaseError(f"{where} it has the unknown {odd[0]}{more}; get the published file")
    return found


def renamed(own: Iterable[str], names: Names) -> dict[str, str]:
    """What they call each of our parameters.

    Raises:
        KeyError: the table has no module of one.
    """
    table = dict(names)
    found = {}
    for name in own:
        module, _, last = name.rpartition(".")
        found[name] = table[name] if name in table else f"{table[module]}.{last}"
    return found


def _folded(state: State, name: str, where: str) -> Tensor:
    """W / (u · W v), as PyTorch's spectral norm computes it in evaluation mode."""
    weight, left, right = (state.get(f"{name}_{end}") for end in ("orig", "u", "v"))
    if weight is None or left is None or right is None:
        lacking = "u" if left is None else "v"
        raise ReleaseError(f"{where} it lacks {name}_{lacking}; get the published file again")
    flat = weight.flatten(1)
    if left.shape != flat.shape[:1] or right.shape != flat.shape[1:]:
        odd, wanted = (left, flat[:, 0]) if left.shape != flat.shape[:1] else (right, flat[0])
        end = "u" if odd is left else "v"
        raise ReleaseError(f"{where} its {name}_{end} is {_sides(odd)}, not {_sides(wanted)}")
    norm = torch.dot(left, torch.mv(flat, right))
    if not norm.abs() > 0:
        raise ReleaseError(f"{where} the spectral norm of its {name} is 0; get it again")
    return weight / norm


def _sides(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _within(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter is a module's; a leading dot stands for the end of any name."""
    return any(
        name.endswith(one) if one.startswith(".") else name == one or name.startswith(f"{one}.")
        for one in modules
    )


def names_in(release: Release, network: nn.Module, config: Any) -> frozenset[str]:
    """Their names of a network's parameters."""
    names = renamed(network.state_dict(), release.names(config)).values()
    return frozenset(name for name in names if not name.endswith(_COUNT))


def likeness(file: Released, names: frozenset[str]) -> float:
    """Share of some names that a file has."""
    return sum(name in file.state or f"{name}_orig" in file.state for name in names) / len(names)


Known = Sequence[tuple[System, Release, frozenset[str]]]
Candidates = dict[str, list[Release]]
"""By system, what a file may be."""


def import_released(
    files: Sequence[Released], out: Path, others: Sequence[str] = ()
) -> tuple[System, str]:
    """Make a checkpoint out of published files; it appears whole or not at all.

    Args:
        files: all that the checkpoint's system needs, in any order.
        out: the checkpoint.
        others: titles of what can be imported in other ways, for messages.

    Returns:
        The system, and what of it stays untrained, empty for nothing.

    Raises:
        ReleaseError: a file cannot be used, or they make no system together.
        OSError: the checkpoint cannot be written.
    """
    system, parts = _chosen(files, others)
    config = system.config_type()
    for release in system.imported_releases():
        if release in parts:
            config = release.configure(config)
    torch.manual_seed(0)
    model = system.build(config)
    for release, released in parts.items():
        own = model.get_submodule(release.place)
        own.load_state_dict(converted(released, release, own, config))
    left = ", ".join(filter(None, (release.left for release in parts)))
    sources = [
        {"part": r.part, "is": r.title, "file": f.path.name, "sha256": f.sha256}
        for r, f in parts.items()
    ]
    metadata = {"imported": json.dumps(sources)}
    if left:
        metadata[UNTRAINED] = left
    save_checkpoint(model, out, metadata, system=system.name)
    return system, left


def _chosen(
    files: Sequence[Released], others: Sequence[str]
) -> tuple[System, dict[Release, Released]]:
    """The system that the files make, and what each of them is."""
    systems = [system_of(name) for name in SYSTEMS]
    known = [
        (system, release, _names(system, release))
        for system in systems
        for release in system.imported_releases()
    ]
    candidates = [_candidates(file, known, others) for file in files]
    problems = []
    for system in systems:
        mine = [found[system.name] for found in candidates if system.name in found]
        if len(mine) < len(files):
            continue
        parts: dict[Release, Released] = {}
        taken: dict[str, Released] = {}
        for file, found in zip(files, mine, strict=True):
            release = _named(file, found)
            if release.part in taken:
                raise ReleaseError(
                    f"{file.path} and {taken[release.part].path} both are {release.title}: give one"
                )
            parts[release], taken[release.part] = file, file
        lacking: dict[str, list[str]] = {}
        for release in system.imported_releases():
            if release.required and release.part not in taken:
                lacking.setdefault(release.part, []).append(release.title)
        if not lacking:
            _check_together(parts)
            return system, parts
        titles = " and ".join(" or ".join(some) for some in lacking.values())
        problems.append(f"{system.name} needs {titles} as well: give all its files at once")
    if problems:
        raise ReleaseError(f"{files[0].path}: {problems[0]}")
    each = "; ".join(
        f"{file.path} is of {' or '.join(found)}"
        for file, found in zip(files, candidates, strict=True)
    )
    raise ReleaseError(f"no system is made of all these ({each}): import them one by one")


def _names(system: System, release: Release) -> frozenset[str]:
    config = release.configure(system.config_type())
    with torch.device("meta"):
        own = system.build(config).get_submodule(release.place)
    return names_in(release, own, config)


def _candidates(file: Released, known: Known, others: Sequence[str]) -> Candidates:
    """What a file may be: the releases most of whose names it has."""
    shares = {(s.name, release): likeness(file, names) for s, release, names in known}
    best = max(shares.values())
    if best < ENOUGH:
        titles = "; ".join(dict.fromkeys([*(release.title for _, release, _ in known), *others]))
        raise ReleaseError(
            f"{file.path}: has names such as {next(iter(file.state))}, of nothing that can be "
            f"imported, which is: {titles}"
        )
    found: Candidates = {}
    for (name, release), share in shares.items():
        if share == best:
            found.setdefault(name, []).append(release)
    return found


def _named(file: Released, found: Sequence[Release]) -> Release:
    """The one of several equal releases that the file's name tells."""
    place = "/".join(file.path.absolute().parts[-2:])
    said = [release for release in found if any(word in place for word in release.words)]
    rest = said or [release for release in found if not release.words]
    if len(rest) == 1:
        return rest[0]
    words = " or ".join(word for release in found for word in release.words)
    raise ReleaseError(
        f"{file.path}: may be {' or '.join(release.title for release in found)}: let the name of "
        f"the file or of its folder have {words} in it, as it was published"
    )


def _check_together(parts: Mapping[Release, Released]) -> None:
    for release, file in parts.items():
        for other in parts.values():
            for word in release.never_with:
                if word in "/".join(other.path.absolute().parts[-2:]):
                    raise ReleaseError(
                        f"{other.path}: {file.path}, {release.title}, was not trained with {word}"
                    )
