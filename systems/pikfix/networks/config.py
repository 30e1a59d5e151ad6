"""What a Pik-Fix network is made of: one configuration, two presets, the paper's ablations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pikfix.systems.damage.networks import DamageConfig

SimilarityScales = Literal["none", "single", "multi"]
Fusion = Literal["input_ab", "multi_scale_ab", "single_scale_histogram", "multi_scale_histogram"]

PYRAMID_LEVELS = 4
"""Correlation scales and fusion points: 1/4, 1/8, 1/16 and 1/32 of the working size."""

_RENAMED = {
    "doubtful_chroma": "low_confidence_chroma",
    "doubtful_confidence": "low_confidence_range",
}
"""Fields as checkpoints of version 0.1 name them."""


@dataclass(frozen=True)
class PikFixConfig:
    """Every choice that changes a tensor's shape or a network's arithmetic.

    `damage` finds and fills damage before anything else (`systems/damage/networks.py`); None, as
    published, leaves that to restoration.

    Restoration (Pik-Fix, sec. 3.1): `restoration_levels` are the downsampling factors of the
    inputs; `(1,)` is the single-level ablation of table 6. Each level has `restoration_blocks`
    residual dense blocks of `restoration_units` convolutions with `restoration_growth` channels.
    `restoration_coarse_channels` widens the coarser levels, which cost little, each with growth in
    proportion; empty, as published, they are as wide as the first. `tone_channels` are the features
    that estimate the whole photo's tone (`tone.py`); 0, as published, leaves it out.

    Similarity (sec. 3.2): a ResNet with `backbone_blocks` per stage and `backbone_width` channels
    in its first stage, (3, 4, 6, 3) and 64 being ResNet-34; adapters to `adapter_channels`; the
    shared filter W to `feature_channels`; softmax with `temperature`. `similarity` is the ablation
    of table 5. `backbone_frozen` keeps published weights and their batch statistics as they are.

    SPHist (sec. 3.3): `bins` per channel and `sigma`, in units of ab/110.

    Colorization (sec. 3.4): `encoder_units` dense units per block with `growth` channels behind a
    1 x 1 convolution to `bottleneck`; `fusion_units` dense units per fusion module;
    `decoder_channels` and `decoder_units` from 1/16 up to full size. `fusion` is the ablation of
    table 4. Where the mean confidence at the finest scale is below `low_confidence_range` the
    reference shows something else, and chroma is multiplied by `low_confidence_chroma`; above that
    range it is left as it is, and in between by what lies between. Both belong to trained features,
    and are set after training.

    Raises:
        ValueError: a field has a value that no network can be built from.
    """

    name: str = "custom"

    damage: DamageConfig | None = None

    restoration_levels: tuple[int, ...] = (1, 4, 8)
    restoration_channels: int = 64
    restoration_growth: int = 32
    restoration_blocks: int = 3
    restoration_units: int = 4
    restoration_coarse_channels: tuple[int, ...] = ()
    tone_channels: int = 0

    backbone_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    backbone_width: int = 64
    backbone_frozen: bool = False
    adapter_channels: int = 64
    feature_channels: int = 256
    similarity: SimilarityScales = "multi"
    temperature: float = 0.01

    bins: int = 64
    sigma: float = 0.1

    stem_channels: int = 64
    encoder_units: tuple[int, int, int, int] = (6, 12, 24, 16)
    growth: int = 32
    bottleneck: int = 128
    dropout: float = 0.0
    fusion: Fusion = "multi_scale_histogram"
    fusion_units: int = 6
    decoder_channels: tuple[int, int, int, int, int] = (256, 256, 256, 128, 64)
    decoder_units: tuple[int, int, int, int, int] = (8, 8, 12, 6, 4)
    low_confidence_chroma: float = 1.0
    low_confidence_range: tuple[float, float] = (0.75, 0.85)

    def __post_init__(self) -> None:
        if self.similarity not in get_args(SimilarityScales):
            raise ValueError(
                f"similarity is {self.similarity!r}: one of {get_args(SimilarityScales)}"
            )
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"fusion is {self.fusion!r}: one of {get_args(Fusion)}")
        if not self.restoration_levels or self.restoration_levels[0] != 1:
            raise ValueError(
                f"restoration_levels is {self.restoration_levels}: the first level must be 1"
            )
        for name in ("temperature", "sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        low, high = self.low_confidence_range
        if not 0 <= self.low_confidence_chroma <= 1 or not low < high:
            raise ValueError(
                f"low_confidence_chroma is {self.low_confidence_chroma} in "
                f"{self.low_confidence_range}: it must be in [0, 1], and the confidences must rise"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be in [0, 1)")

    @property
    def restoration_widths(self) -> tuple[tuple[int, int], ...]:
        """Channels and growth of every level of restoration."""
        first, growth = self.restoration_channels, self.restoration_growth
        coarse = self.restoration_coarse_channels or (first,)
        # Fewer levels, as in the ablation, are the first of them; more are as wide as the last.
        count = len(self.restoration_levels) - 1
        coarse = (coarse + coarse[-1:] * count)[:count]
        return ((first, growth), *((width, width * growth // first) for width in coarse))

    @property
    def restoration_halo(self) -> int:
        """No repaired pixel depends on a pixel of the photo farther away than this.

        Every 3 x 3 convolution adds a place of its level: a head, the blocks' units and the fusion,
        then merge and output at full size; a coarse level's place averages its pixels, and is
        enlarged bilinearly. Rounded up to a multiple of 32.
        """
        places = 2 + self.restoration_blocks * self.restoration_units
        levels = (
            factor * places + (math.ceil(1.5 * factor) - 1 if factor > 1 else 0)
            for factor in self.restoration_levels
        )
        return 32 * math.ceil((2 + max(levels)) / 32)

    @property
    def histogram_fusion(self) -> bool:
        """Whether the warp carries histograms; otherwise it carries the two ab channels."""
        return self.fusion in ("single_scale_histogram", "multi_scale_histogram")

    @property
    def warped_channels(self) -> int:
        """Channels of every `warped_i`: 2 K histogram bins, or a and b."""
        return 2 * self.bins if self.histogram_fusion else 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored inside a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PikFixConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: unknown fields, or values that no network can be built from.
        """
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration fields: {', '.join(unknown)}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if isinstance(values.get("damage"), dict):
            fields["damage"] = DamageConfig.from_dict(values["damage"])
        return cls(**fields)


PRESETS: dict[str, PikFixConfig] = {
    "paper": PikFixConfig(name="paper"),
    "compact": PikFixConfig(
        name="compact",
        # Trained with the defaults, served more cautiously: a sound photo comes first.
        damage=DamageConfig(name="compact", threshold=0.7, softness=0.5, margin=1),
        restoration_channels=24,
        restoration_growth=12,
        restoration_coarse_channels=(40, 64),
        tone_channels=64,
        backbone_blocks=(2, 2, 2, 2),
        backbone_width=32,
        adapter_channels=32,
        feature_channels=64,
        bins=32,
        stem_channels=16,
        growth=16,
        bottleneck=64,
        decoder_channels=(160, 128, 64, 32, 16),
        decoder_units=(4, 4, 4, 2, 2),
    ),
}
"""`paper`: the published layout at full width. `compact`: the same layout for a CPU."""
