"""From options to a running trainer: photos, neighbours, feature net, resume."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from pikfix.kernels import cpu
from pikfix.systems.checkpoint import CheckpointError, Loaded, load
from pikfix.training.config import Precision, differences
from pikfix.training.errors import TrainingError, in_one_line
from pikfix.training.logs import Reporter
from pikfix.training.loop import Budget, Result, Trainer
from pikfix.training.photo_store import PhotoStore, open_photos
from pikfix.training.stage import Stage
from pikfix.training.state import State, has_state, load_state

_SKIPPED_SHOWN = 10

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """The places of a run's material, and its devices; nothing here changes what it computes.

    photos: folder of colour photos.
    old_photos: folder of real old photos, or None.
    folder: of the run; made when missing.
    validation: folder of photos that are not trained on, or None.
    feature_weights: of a frozen feature net, or None.
    neighbours: a table made elsewhere, or None.
    init: checkpoints to start from: (sub-net, checkpoint) takes one of `PARTS` from it, and
        (None, checkpoint) takes all; later ones win.
    cache: file for the decoded photos, or None to keep them in memory.
    resume: continue the run in `folder`.
    validation_side: of the validation's centre crops.
    """

    photos: Path
    folder: Path
    validation: Path | None = None
    old_photos: Path | None = None
    feature_weights: Path | None = None
    neighbours: Path | None = None
    init: tuple[tuple[str | None, Path], ...] = ()
    cache: Path | None = None
    resume: bool = False
    device: str = "cpu"
    devices: int = 1
    workers: int = 1
    validation_side: int = 256
    validation_limit: int = 50
    budget: Budget = dataclasses.field(default_factory=Budget)


def usual_precision(folder: Path, *, resume: bool, device: str) -> Precision:
    """The precision of a run that is told none: its own when resumed, else what suits `device`."""
    if resume:
        try:
            kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            precision: Precision = kept["training"]["optimizer"]["precision"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # `train` says what is wrong with the run
        else:
            return precision
    return cpu.training_precision() if device == "cpu" else "bf16"


def check(config: Any, options: RunOptions) -> tuple[State | None, list[str]]:
    """Refuse what cannot work before anything slow happens; returns the state to resume."""
    folder = options.folder
    if options.device not in ("cpu", "cuda"):
        raise TrainingError(f"the device is {options.device!r}: choose cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("PyTorch finds no CUDA device: train with --device cpu")
    if config.optimizer.batch % options.devices:
        raise TrainingError(
            f"a batch of {config.optimizer.batch} cannot be shared by {options.devices} devices"
        )
    if not options.resume:
        if has_state(folder):
            raise TrainingError(
                f"{folder} already holds a run: continue it with --resume, or choose another folder"
            )
        return None, []
    state, warnings = load_state(folder)
    try:
        begun = type(config).from_dict(json.loads(state["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the run in {folder} was begun by another version ({in_one_line(error)}): start "
            "another with --init and its model.safetensors"
        ) from error
    changed = differences(begun.to_dict(), config.to_dict())
    if changed:
        raise TrainingError(
            f"the run in {folder} has another configuration ({'; '.join(changed)}): resume it with "
            "its own, or start another run with --init"
        )
    return state, warnings


def check_material(folder: Path, state: State | None, facts: dict[str, Any]) -> None:
    """Refuse to resume a run on other material than it had; no state is a new run."""
    changed = [] if state is None else differences(json.loads(state["facts"]), facts)
    if changed:
        raise TrainingError(
            f"the run in {folder} was trained on other material ({'; '.join(changed)}): give it "
            "what it had, or start another run with --init"
        )


def open_validation(
    options: RunOptions, side: int, say: Say, *, grey: bool = False
) -> PhotoStore | None:
    """The photos to measure with, the first of the folder's, or None without a folder."""
    if options.validation is None:
        say("no validation folder (--val): training goes on without validation")
        return None
    store = open_photos(options.validation, side, grey=grey)
    tell_skipped(options.validation, store, say)
    return first_photos(store, options.validation_limit)


def run_stage(
    stage: Stage,
    config: Any,
    options: RunOptions,
    state: State | None,
    facts: dict[str, Any],
    *,
    fabric: Fabric,
    reporter: Reporter,
) -> Result:
    """Train a stage from a state, or from the beginning; `config` and `facts` go into the run."""
    trainer = Trainer(
        stage,
        config.optimizer,
        options.budget,
        fabric=fabric,
        folder=options.folder,
        reporter=reporter,
        seed=config.seed,
        config=config.to_dict(),
        facts=facts,
    )
    first = fabric.is_global_zero
    if state is not None:
        trainer.restore(state)
        say = reporter.say if first else silence
        say(f"resuming at step {trainer.step} after {trainer.minutes:.1f} minutes")
    elif first:
        text = json.dumps({"training": config.to_dict(), "facts": facts}, indent=2)
        (options.folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return trainer.run(options.workers, resumed=state is not None)


def launched(precision: Precision, options: RunOptions) -> Fabric:
    """The devices of a run, ready."""
    strategy: Any = "auto"
    if options.devices > 1:
        # A term that is switched off leaves parameters without a gradient.
        strategy = DDPStrategy(find_unused_parameters=True)
    fabric = Fabric(
        accelerator=options.device,
        devices=options.devices,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


def loaded(path: Path, system: str, part: str | None = None) -> Loaded:
    """A checkpoint to start from: of a system, or of the one that a part of it is by itself.

    Raises:
        TrainingError: it cannot be read, or is of another system.
    """
    try:
        found = load(path)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    if found.system.name not in (system, part):
        raise TrainingError(f"{path} is of the system {found.system.name}, not of {system}")
    return found


def start_from(network: nn.Module, source: Loaded, part: str | None, path: Path) -> None:
    """Load the weights of a checkpoint, or of one part of it, into a network.

    A checkpoint of the system that the part is by itself gives all its weights to that part.

    Raises:
        TrainingError: they do not fit; the message names what differs.
    """
    config: Any = network.config
    ours, its = config.to_dict(), source.model
    own = network
    try:
        if part is not None:
            own = network.get_submodule(part)
            if source.system.name == part:
                ours = ours[part] or {}
            else:
                its = its.get_submodule(part)
        own.load_state_dict(its.state_dict())
    except (AttributeError, RuntimeError) as error:
        changed = differences(source.config.to_dict(), ours)
        raise TrainingError(
            f"{path} is of another network ({'; '.join(changed)}): use its own preset and ablations"
        ) from error


def first_photos(store: PhotoStore, count: int) -> PhotoStore:
    """The first `count` photos of a store."""
    if len(store) <= count:
        return store
    photos = [store[index] for index in range(count)]
    return PhotoStore.of(photos, store.names[:count], store.skipped)


def started_from(options: RunOptions, state: State | None) -> list[str]:
    """The checkpoints that a run began from, those of its state when it is resumed."""
    if state is not None:
        begun: list[str] = json.loads(state["facts"])["started_from"]
        return begun
    return [f"{part or 'all'} {path.name}" for part, path in options.init]


def make_folder(folder: Path) -> None:
    """Make the folder of a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the run folder {folder} cannot be made: {error.strerror}") from error


def tell_skipped(folder: Path, store: PhotoStore, say: Say) -> None:
    """Say which photos of a folder are not used, the first of them by name."""
    say(f"{folder}: {len(store)} photos, {len(store.skipped)} files skipped")
    for item in store.skipped[:_SKIPPED_SHOWN]:
        say(f"  skipped {item.name}: {item.reason}")
    if len(store.skipped) > _SKIPPED_SHOWN:
        say(f"  and {len(store.skipped) - _SKIPPED_SHOWN} more, all in skipped.csv")
    for line in store.others:
        say(f"  {line}")


def silence(_: str) -> None:
    """Say nothing: another process speaks."""
