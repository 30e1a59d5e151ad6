"""Training throughput: images per second as the networks could be trained, and as they are.

    python benchmarks/training.py --photos DIR -o RESULT.json

All three sub-nets learn on the same batches. Rows differ in one thing each: the correlation with
the whole N x M map or fused, float32 or bfloat16, batches made between the steps or by a worker.
Every row's first step is left out, and its losses must be those of the first row.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import processor
from lightning_fabric import Fabric

from pikfix.kernels import naive
from pikfix.photos import write_atomically
from pikfix.systems.pikfix.networks import PikFix, similarity
from pikfix.systems.pikfix.training.batches import TrainingBatches
from pikfix.systems.pikfix.training.config import TrainConfig, preset
from pikfix.systems.pikfix.training.neighbours import descriptors, nearest
from pikfix.systems.pikfix.training.stages import Material, stage_of
from pikfix.training.dataset import batch_loader
from pikfix.training.photo_store import PhotoStore, open_photos
from pikfix.training.run import first_photos
from pikfix.training.update import Updater

PHOTOS = 64
AGREEMENT = {"fp32": 1e-3, "bf16": 0.05}
"""Relative difference of the first step's loss to the first row's."""


def main() -> None:
    """Measure every row and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, for each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    store = first_photos(open_photos(args.photos, 288), PHOTOS)
    rows = []
    for name, precision, fused, workers in (
        ("whole map, fp32, no worker", "fp32", False, 0),
        ("fused, fp32, no worker", "fp32", True, 0),
        ("fused, bf16, no worker", "bf16", True, 0),
        ("fused, bf16, a worker", "bf16", True, 1),
    ):
        config = configured(precision, args.crop, args.batch)
        with contextlib.nullcontext() if fused else whole_map():
            row = measure(config, store, workers, args.steps)
        rows.append({"name": name, **row})
        difference = abs(row["first_loss"] / rows[0]["first_loss"] - 1)
        if difference > AGREEMENT[precision]:
            raise SystemExit(f"{name}: the first loss is {difference:.1%} off; nothing is measured")
        rows[-1]["times_the_first"] = row["images_per_second"] / rows[0]["images_per_second"]
        print(rows[-1], flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "torch": torch.__version__,
        "threads": args.threads,
        "crop": args.crop,
        "batch": args.batch,
        "rows": rows,
    }
    write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())


def configured(precision: str, crop: int, batch: int) -> TrainConfig:
    """The compact preset without what needs weights from elsewhere."""
    config = preset("compact")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, crop=crop),
        loss=dataclasses.replace(config.loss, perceptual=0.0, distillation=0.0, adversarial=0.0),
        optimizer=dataclasses.replace(config.optimizer, precision=precision, batch=batch),
    )


@contextlib.contextmanager
def whole_map() -> Iterator[None]:
    """Let the similarity sub-net write the correlation of all pairs of positions."""
    fused = similarity.correlation_warp
    similarity.correlation_warp = naive.correlation_warp
    try:
        yield
    finally:
        similarity.correlation_warp = fused


def measure(config: TrainConfig, store: PhotoStore, workers: int, steps: int) -> dict[str, Any]:
    """Images per second over `steps` updates, and the loss of the first one."""
    torch.manual_seed(config.seed)
    precision = "bf16-mixed" if config.optimizer.precision == "bf16" else "32-true"
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    table = nearest(descriptors(store), config.data.neighbours)
    dataset = TrainingBatches(store, table, config.data, config.optimizer.batch, config.seed)
    stage = stage_of(Material(PikFix(config.network), config, dataset))
    stage.anneal(stage.network, 1.0)
    update = Updater(fabric, stage, config.optimizer, config.seed)
    update.module.train()
    batches = iter(batch_loader(dataset, 0, workers))
    seconds: list[float] = []
    first = 0.0
    for step in range(steps + 1):
        start = time.perf_counter()
        values, updated = update(next(batches), step, 1e-4)
        seconds.append(time.perf_counter() - start)
        if not updated:
            raise SystemExit("a gradient is not finite")
        first = first or values["total"]
    per_step = statistics.median(seconds[1:])
    return {"images_per_second": config.optimizer.batch / per_step, "first_loss": first}


if __name__ == "__main__":
    main()
