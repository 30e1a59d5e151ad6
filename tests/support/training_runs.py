"""What the tests of training runs share."""

from __future__ import annotations

import csv
import errno
import io
from pathlib import Path

import torch
from safetensors.torch import load_file

from pikfix.training.config import OptimizerConfig
from pikfix.training.logs import Reporter

# The preset's layout with everything small, by the command line's own switches.
SMALL = [
    *("--ablation", "restoration_channels=4", "--ablation", "restoration_growth=2"),
    *("--ablation", "restoration_blocks=1", "--ablation", "restoration_units=1"),
    *("--ablation", "backbone_blocks=1,1,1,1", "--ablation", "backbone_width=4"),
    *("--ablation", "adapter_channels=4", "--ablation", "feature_channels=8"),
    *("--ablation", "bins=8", "--ablation", "stem_channels=4", "--ablation", "growth=4"),
    *("--ablation", "encoder_units=1,1,1,1", "--ablation", "bottleneck=8"),
    *("--ablation", "fusion_units=1", "--ablation", "decoder_channels=8,8,8,4,4"),
    *("--ablation", "decoder_units=1,1,1,1,1"),
    *("--batch", "2", "--crop", "64", "--workers", "0", "--threads", "1"),
    *("--loss", "discriminator_width=4", "--data", "side=80"),
]


class Quiet(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(None, None, io.StringIO())

    @property
    def text(self) -> str:
        return self._stream.getvalue()  # type: ignore[attr-defined, no-any-return]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(first: Path, second: Path) -> None:
    a, b = weights_of(first), weights_of(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


STEADY = OptimizerConfig(
    batch=2, warmup=2, precision="fp32", schedule="constant", temperature_start=None
)
"""Schedules that do not depend on the budget, for runs whose budget is raised."""


SCRIPT = """
import dataclasses, sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from pikfix.systems.pikfix.training.config import TrainConfig
from pikfix.training.loop import Budget
from pikfix.training.run import RunOptions
from pikfix.systems.pikfix.training.run import train
config = TrainConfig.from_dict(json.loads(sys.argv[1]))
budget = Budget(steps=int(sys.argv[4]), checkpoint_minutes=0, log_steps=1)
train(config, RunOptions(Path(sys.argv[2]), Path(sys.argv[3]), workers=1, budget=budget))
"""
