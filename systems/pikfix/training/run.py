"""From options to a running trainer of Pik-Fix: photos, neighbours, feature net, networks."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from pikfix.kernels import cpu
from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.training.batches import TrainingBatches
from pikfix.systems.pikfix.training.config import SUBNETS, TrainConfig
from pikfix.systems.pikfix.training.neighbours import (
    Table,
    descriptors,
    load_table,
    nearest,
    save_table,
)
from pikfix.systems.pikfix.training.stages import Material, stage_of
from pikfix.systems.pikfix.training.validation import Validation
from pikfix.training.errors import TrainingError
from pikfix.training.features import FeatureNet, load_feature_net
from pikfix.training.logs import Reporter
from pikfix.training.loop import Result
from pikfix.training.photo_store import PhotoStore, open_photos
from pikfix.training.run import (
    RunOptions,
    Say,
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
from pikfix.training.state import State


def train(config: TrainConfig, options: RunOptions, reporter: Reporter | None = None) -> Result:
    """Train or resume a run.

    Raises:
        TrainingError: it cannot start or go on; the message says what to do.
    """
    state, warnings = check(config, options)
    reporter = reporter or Reporter(options.budget.steps, options.budget.minutes)
    try:
        for warning in warnings:
            reporter.say(f"{warning}: resuming from the state before it")
        return _train(config, options, reporter, state)
    finally:
        reporter.close()


def _train(
    config: TrainConfig, options: RunOptions, reporter: Reporter, state: State | None
) -> Result:
    fabric = launched(config.optimizer.precision, options)
    first = fabric.is_global_zero
    say = reporter.say if first else silence
    make_folder(options.folder)

    if options.device == "cpu" and (warning := cpu.emulation(config.optimizer.precision)):
        say(warning)
    store = open_photos(options.photos, config.data.side, options.cache)
    tell_skipped(options.photos, store, say)
    if first:
        _write_skipped(options.folder / "skipped.csv", store)
    validation = open_validation(options, options.validation_side, say)
    features = None
    if options.feature_weights is not None:
        features = load_feature_net(options.feature_weights)
    table = _neighbours(config, options, store, features, say=say, write=first)
    facts = {
        "photos": store.fingerprint,
        "neighbours": _digest(table),
        "features": type(features).__name__ if features is not None else None,
        "devices": options.devices,
        "started_from": started_from(options, state),
    }
    check_material(options.folder, state, facts)

    material = _material(
        config,
        options,
        fabric,
        store=store,
        table=table,
        validation=validation,
        features=features,
    )
    stage = stage_of(material)
    for name in stage.left_out:
        say(f"no feature weights (--feature-weights): the {name} term is left out")
    return run_stage(stage, config, options, state, facts, fabric=fabric, reporter=reporter)


def _material(
    config: TrainConfig,
    options: RunOptions,
    fabric: Fabric,
    *,
    store: PhotoStore,
    table: Table,
    validation: PhotoStore | None,
    features: FeatureNet | None,
) -> Material:
    torch.manual_seed(config.seed)
    net = PikFix(config.network)
    if not options.resume:
        for part, path in options.init:
            _init(net, part, path)
    dataset = TrainingBatches(
        store,
        table,
        config.data,
        config.optimizer.batch // options.devices,
        config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    measured = None
    if validation is not None:
        measured = Validation(
            store=validation,
            pool=store,
            table=_validation_table(validation, store, features, config.data.references),
            references=config.data.references,
            side=options.validation_side,
            strength=config.data.strength,
            autocast=fabric.autocast,
            device=fabric.device,
        )
    if features is not None:
        features = features.to(fabric.device)
    return Material(net, config, dataset, features, measured)


def _init(net: PikFix, part: str | None, path: Path) -> None:
    """Load a checkpoint's weights, or one sub-net's; temperature, sigma and dropout may differ."""
    if part is not None and part not in SUBNETS:
        raise TrainingError(f"there is no sub-net {part!r}: choose from {', '.join(SUBNETS)}")
    source = loaded(path, "pikfix", part)
    model: Any = source.model
    if part is None and model.damage is None:
        # One that leaves damage to restoration: those networks stay as they are.
        model.damage = net.damage
    start_from(net, source, part, path)


def _neighbours(
    config: TrainConfig,
    options: RunOptions,
    store: PhotoStore,
    features: FeatureNet | None,
    *,
    say: Say,
    write: bool,
) -> Table:
    """The neighbour table: given, kept from the run's beginning, or made now."""
    if options.neighbours is not None:
        return load_table(options.neighbours, store)
    kept = options.folder / "neighbours.npz"
    if options.resume and kept.exists():
        return load_table(kept, store)
    say(f"looking for the nearest of {len(store)} photos")
    table = nearest(descriptors(store, features), config.data.neighbours)
    if write:
        save_table(kept, table, store)
    return table


def _validation_table(
    validation: PhotoStore, pool: PhotoStore, features: FeatureNet | None, count: int
) -> Table:
    """The nearest training photos of every validation photo, described together."""
    both = descriptors([*validation, *pool], features)
    return nearest(both[: len(validation)], count, both[len(validation) :])


def _digest(table: Table) -> str:
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()[:16]


def _write_skipped(path: Path, store: PhotoStore) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("file", "reason"))
    writer.writerows((item.name, item.reason) for item in store.skipped)
    path.write_text(buffer.getvalue(), encoding="utf-8")
