"""From options to a running trainer, for a stage that its system declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from pikfix.systems.registry import system_of
from pikfix.training.config import OptimizerConfig
from pikfix.training.logs import Reporter
from pikfix.training.loop import Result
from pikfix.training.photo_store import PhotoStore, open_photos
from pikfix.training.run import (
    RunOptions,
    check,
    check_material,
    launched,
    loaded,
    make_folder,
    open_validation,
    run_stage,
    silence,
    start_from,
    started_from,
    tell_skipped,
)
from pikfix.training.stage import Stage
from pikfix.training.state import State


@dataclass(frozen=True)
class StageConfig:
    """Everything that decides what a run computes; a resumed run must have the same.

    system, stage: by their names.
    network: the system's configuration, as plain values.
    crop: side of the training crops in pixels, a multiple of 32.
    side: short side that photos are decoded to.
    """

    system: str
    stage: str
    network: dict[str, Any]
    crop: int = 192
    side: int = 288
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 32:
            raise ValueError(f"crop is {self.crop}: it must be a multiple of 32")
        if self.side < self.crop:
            raise ValueError(f"side is {self.side}: it must be at least the crop, {self.crop}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StageConfig:
        """The inverse of `to_dict`.

        Raises:
            TypeError: unknown fields.
            ValueError: a field has a value that no run can have.
        """
        return cls(**{**values, "optimizer": OptimizerConfig(**values["optimizer"])})


@dataclass(frozen=True)
class Material:
    """The network of a run and all that it trains on.

    network: of the stage's system.
    photos: colour photos.
    validation: photos to measure with, or None.
    stamps: a folder of pictures of dirt, or None.
    config: of the run.
    batch: samples of this process.
    rank: of this process.
    old: real old photos, or None.
    features: a frozen feature net's file, or None.
    started_from: the checkpoints that the run began from, each after the part that it gave, or
        after `all`.
    """

    network: Any
    photos: PhotoStore
    validation: PhotoStore | None
    stamps: Path | None
    config: StageConfig
    batch: int
    rank: int = 0
    old: PhotoStore | None = None
    features: Path | None = None
    started_from: Sequence[str] = ()


class StageType(Protocol):
    """What a system names as a stage: it makes one of its material."""

    needs_colors: bool
    takes: Sequence[str]

    def __call__(self, material: Material) -> Stage:
        """The stage."""


def stage_kind(config: StageConfig, options: RunOptions, stamps: Path | None) -> StageType:
    """What makes the stage of a run.

    Raises:
        ValueError: there is no such system or stage, or it has no use for what is given.
    """
    kind: StageType = system_of(config.system).stage(config.stage)
    given = {
        "stamps": stamps,
        "old_photos": options.old_photos,
        "feature_weights": options.feature_weights,
    }
    for name, path in given.items():
        if path is not None and name not in kind.takes:
            option = name.replace("_", "-")
            raise ValueError(
                f"{config.system} has no use for --{option} in {config.stage}: leave it out"
            )
    return kind


def train_stage(
    config: StageConfig,
    options: RunOptions,
    stamps: Path | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Train or resume a stage of a system.

    Raises:
        ValueError: there is no such system or stage, or it has no use for what is given.
        TrainingError: it cannot start or go on; the message says what to do.
    """
    kind = stage_kind(config, options, stamps)
    state, warnings = check(config, options)
    reporter = reporter or Reporter(options.budget.steps, options.budget.minutes)
    try:
        for warning in warnings:
            reporter.say(f"{warning}: resuming from the state before it")
        return _run(kind, config, options, stamps, reporter=reporter, state=state)
    finally:
        reporter.close()


def _run(
    kind: StageType,
    config: StageConfig,
    options: RunOptions,
    stamps: Path | None,
    *,
    reporter: Reporter,
    state: State | None,
) -> Result:
    fabric = launched(config.optimizer.precision, options)
    say = reporter.say if fabric.is_global_zero else silence
    make_folder(options.folder)
    grey = not kind.needs_colors
    store = open_photos(options.photos, config.side, options.cache, grey=grey)
    tell_skipped(options.photos, store, say)
    validation = open_validation(options, config.side, say, grey=grey)
    old = None
    if options.old_photos is not None:
        old = open_photos(options.old_photos, config.side, grey=True)
        tell_skipped(options.old_photos, old, say)
    facts = {
        "photos": store.fingerprint,
        **({} if old is None else {"old_photos": old.fingerprint}),
        "stamps": None if stamps is None else stamps.name,
        "devices": options.devices,
        "started_from": started_from(options, state),
    }
    check_material(options.folder, state, facts)
    torch.manual_seed(config.seed)
    system = system_of(config.system)
    network = system.build(system.config_type.from_dict(config.network))
    if not options.resume:
        for part, path in options.init:
            start_from(network, loaded(path, system.name, part), part, path)
    stage = kind(
        Material(
            network,
            store,
            validation,
            stamps,
            config,
            config.optimizer.batch // options.devices,
            fabric.global_rank,
            old,
            options.feature_weights,
            started_from(options, state),
        )
    )
    return run_stage(stage, config, options, state, facts, fabric=fabric, reporter=reporter)
