"""The scratch detector that Wan et al. released, `detection/FT_Epoch_latest.pt`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pikfix.systems.damage.networks import PRESETS, DamageConfig
from pikfix.systems.releases import Release

CONFIG = PRESETS["paper"]
TITLE = "Wan et al.'s scratch detector (FT_Epoch_latest.pt)"
UNUSED = (".filt",)
"""The filter of the blur, which is a constant."""


def names(config: DamageConfig) -> Iterator[tuple[str, str]]:
    """Our modules and theirs."""
    yield "entry", "first.1"
    yield "output", "last.1"
    for i in range(len(config.detector_channels) - 1):
        yield f"encoder.{i}.shrink.0", f"down_sample.{i}.1"
        yield f"encoder.{i}.shrink.1", f"down_sample.{i}.2"
        yield f"decoder.{i}.grow", f"up_path.{i}.up.2"
        for ours, theirs in ((0, 1), (1, 2), (3, 5), (4, 6)):
            yield f"encoder.{i}.layers.{ours}", f"down_path.{i}.block.{theirs}"
            yield f"decoder.{i}.layers.{ours}", f"up_path.{i}.conv_block.block.{theirs}"


def _configured(_: Any) -> DamageConfig:
    return CONFIG


RELEASES = (
    Release("detector", TITLE, names, place="detector", configure=_configured, unused=UNUSED),
)
