"""The options of a training run: frozen groups of options that go into every checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pikfix.systems.pikfix.networks import PRESETS, PikFixConfig
from pikfix.training.config import OptimizerConfig, one_of

PARTS = ("restoration", "similarity", "colorization")
"""The sub-nets that can be trained separately."""
SUBNETS = ("damage", *PARTS)
"""What a run can start from another checkpoint's weights of."""
TONE = "tone"
"""The end of restoration, which can be trained alone as well: its levels then stay as they are."""

ColorInput = Literal["clean", "restored", "joint"]
HistogramTarget = Literal["reference", "truth"]

_RENAMED = {"light": "sparse_damage_share"}
"""Options of data by the names that older runs have stored them under."""

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """The make-up of a sample.

    crop: side of the training crops in pixels, a multiple of 32.
    side: short side that photos are decoded to, at least `crop`; crops are cut out of windows
        between `crop` and the whole short side and resized to `crop`.
    degraded: share of samples whose photo is degraded; the others come clean.
    strength: of the degradation, see `DegradationConfig`.
    sparse_damage_share: share of the degraded samples whose damage is thinned out: each kind of it
        occurs u times as often as otherwise, u being drawn from [0, 1]. Most kept photos are
        damaged in one or two ways, and where everything occurs at once the traces of one thing hide
        under the others.
    sibling, near, random: shares of the kind of a reference: another crop of the same photo, one
        of the `neighbours` nearest photos, any other photo. They are normalised to sum to 1.
    references: most references per sample; every batch draws its number from 1 to this.
    hue_rotation: share of sibling samples in which truth and references have their hues rotated
        together by any angle: the colours can then only come from the reference.
    jitter: strength of the colour jitter of siblings (1: hue +-20 degrees, saturation 0.8 to 1.2,
        contrast 0.75 to 1.25).
    affine: strength of the affine map of siblings (1: rotation +-25 degrees, scale 0.8 to 1.2,
        shear +-8 degrees, shift +-10 %).
    """

    crop: int = 128
    side: int = 288
    degraded: float = 0.7
    strength: float = 1.0
    sparse_damage_share: float = 0.0
    sibling: float = 0.5
    near: float = 0.35
    random: float = 0.15
    references: int = 3
    neighbours: int = 10
    hue_rotation: float = 0.1
    jitter: float = 1.0
    affine: float = 1.0

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 32:
            raise ValueError(f"crop is {self.crop}: it must be a multiple of 32")
        if self.side < self.crop:
            raise ValueError(f"side is {self.side}: it must be at least the crop, {self.crop}")
        if self.references < 1 or self.neighbours < 1:
            raise ValueError("references and neighbours must be at least 1")
        for name in ("degraded", "sparse_damage_share", "hue_rotation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1]")
        if min(self.sibling, self.near, self.random) < 0 or not self._reference_sum > 0:
            raise ValueError("the shares sibling, near, random must be >= 0 and not all 0")

    @property
    def _reference_sum(self) -> float:
        return self.sibling + self.near + self.random

    @property
    def reference_shares(self) -> tuple[float, float, float]:
        """Shares of sibling, near and random references; they sum to 1."""
        total = self._reference_sum
        return self.sibling / total, self.near / total, self.random / total


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objective; 0 switches a term off. Defaults: Pik-Fix, sec. 3.5.

    luminance: L1 between restored and clean L.
    detail: the same once the best curve has set the restored photo's tone (`losses.detail`).
    perceptual: squared distance of a frozen feature net's features of restored and clean L.
    histogram: earth mover's distance of the output's colour histogram to its target's.
    chroma: L1 on ab.
    adversarial: LSGAN of a PatchGAN that sees L and ab.
    structure: 1 - SSIM of restored and clean L, plus that of the colorized and the true photo in
        sRGB: what L1 blurs, and chroma at edges.
    distillation: cosine distance of the similarity backbone's deepest features, through a linear
        head, to the frozen feature net's last ones.
    chroma_emphasis: 0 is plain L1 on ab; at e, a pixel weighs 1 + e * chroma / 0.25 before the
        weights are normalised, against pale averages.
    histogram_target: the reference where it is another, suitable photo (published), or the truth.
    discriminator_width: channels of the PatchGAN's first layer.
    """

    luminance: float = 1.0
    detail: float = 0.0
    perceptual: float = 0.2
    histogram: float = 0.5
    chroma: float = 1.0
    adversarial: float = 0.2
    structure: float = 0.0
    distillation: float = 0.0
    chroma_emphasis: float = 0.0
    histogram_target: HistogramTarget = "reference"
    discriminator_width: int = 64

    def __post_init__(self) -> None:
        for name in (*TERMS, "chroma_emphasis"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"loss {name} is {getattr(self, name)}: it must be at least 0")
        one_of("histogram_target", self.histogram_target, HistogramTarget)


TERMS = (
    "luminance",
    "detail",
    "perceptual",
    "histogram",
    "chroma",
    "adversarial",
    "structure",
    "distillation",
)
"""The terms of the objective, by the names of their weights."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; a resumed run must have the same.

    parts: the sub-nets that are trained, or `TONE`; the others keep their weights.
    color_input: what the colour sub-nets see: the clean L, the restored L without a gradient to
        the restoration, or (joint, as published) with one.
    """

    network: PikFixConfig = field(default_factory=lambda: PRESETS["compact"])
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parts: tuple[str, ...] = PARTS
    color_input: ColorInput = "restored"
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*PARTS, TONE)
        if not self.parts or not set(self.parts) <= set(known):
            raise ValueError(f"parts is {','.join(self.parts)!r}: choose from {', '.join(known)}")
        if TONE in self.parts and not self.network.tone_channels:
            raise ValueError("there is no tone to train: set the network's tone_channels")
        one_of("color_input", self.color_input, ColorInput)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be at least 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`, also after a trip through JSON and under older names.

        Raises:
            ValueError: unknown fields or values that no run can have.
        """
        data = {_RENAMED.get(key, key): value for key, value in values.get("data", {}).items()}
        groups = {
            "data": _group(DataConfig, data),
            "loss": _group(LossConfig, values.get("loss", {})),
            "optimizer": _group(OptimizerConfig, values.get("optimizer", {})),
        }
        network = PikFixConfig.from_dict(values["network"])
        rest = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key not in ("network", *groups)
        }
        return _group(cls, {**rest, **groups, "network": network})


def preset(name: str) -> TrainConfig:
    """The training options that go with a network preset.

    `paper`: sec. 4.1 (crops of 256, Adam 1e-4, times 0.99 each epoch, trained jointly).
    `compact`: for hours on a CPU, and for photos of which most have one or two kinds of damage.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    network = PRESETS[name]
    if name == "paper":
        return TrainConfig(
            network=network,
            data=DataConfig(crop=256),
            optimizer=OptimizerConfig(batch=8, learning_rate=1e-4, schedule="exponential"),
            color_input="joint",
        )
    return TrainConfig(
        network=network,
        data=DataConfig(sparse_damage_share=0.5),
        loss=LossConfig(luminance=0.3, detail=1.0, discriminator_width=32),
    )


def _group(kind: type[T], values: dict[str, Any]) -> T:
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown training options: {', '.join(unknown)}")
    return kind(**values)
