"""Procedural synthesis of old photos: `degrade` turns a clean picture into a damaged one.

Two sets, after "Bringing Old Photos Back to Life" (Wan et al., CVPR 2020) and Pik-Fix (Xu et al.,
WACV 2023, sec. 4): unstructured operations (blur, noise, JPEG, low resolution, fading, toning) in
random order, each skipped with 30 %; structured defects (cracks, scratches, dust, creases, stains,
paper, holes, torn edges) blended with random opacity. numpy and Pillow only; about ten
milliseconds for a 256 x 256 luminance on one core, so that data loader workers can afford it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pikfix.training.degradation_fields import Array
from pikfix.training.degradation_structured import LOSSES, SURFACE, Layer
from pikfix.training.degradation_unstructured import OPERATIONS, Scale

MIN_SIDE = 16

UNSTRUCTURED = tuple(OPERATIONS)
"""Names of the unstructured operations."""

STRUCTURED: Mapping[str, float] = {
    "paper": 0.45,
    "halftone": 0.04,
    "stains": 0.3,
    "creases": 0.3,
    "craquelure": 0.15,
    "worn_edges": 0.2,
    "cracks": 0.3,
    "scratches": 0.55,
    "dust": 0.6,
    "holes": 0.25,
    "torn_edges": 0.15,
}
"""How often each structured defect occurs at strength 1."""


@dataclass(frozen=True)
class DegradationConfig:
    """The choice of what `degrade` may do to a picture.

    strength: 0 leaves the picture as it is, 1 has the published ranges, 1.6 is heavy damage.
    skip: probability of leaving out each unstructured operation.
    unstructured: names of the operations to draw from (see `UNSTRUCTURED`).
    always: operations of these that are never left out.
    structured: probability of each structured defect at strength 1; a missing one never occurs.
    scan_probability: how often the unstructured operations come after the structured defects, as
        when a damaged print is photographed; otherwise the damage lies on top.
    pixel_scale: pixels per unit length of the defects; None means short side / 256, at least 1.
    """

    strength: float = 1.0
    skip: float = 0.3
    unstructured: tuple[str, ...] = UNSTRUCTURED
    always: tuple[str, ...] = ()
    structured: Mapping[str, float] = field(default_factory=lambda: dict(STRUCTURED))
    scan_probability: float = 0.3
    pixel_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 3.0:
            raise ValueError(f"strength must be between 0 and 3, got {self.strength}")
        for name, value in (("skip", self.skip), ("scan_probability", self.scan_probability)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        for name, value in self.structured.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"probability of {name} must be between 0 and 1, got {value}")
        operations = (*self.unstructured, *self.always)
        unknown = [n for n in operations if n not in OPERATIONS]
        unknown += [n for n in self.structured if n not in STRUCTURED]
        if unknown:
            known = ", ".join((*UNSTRUCTURED, *STRUCTURED))
            raise ValueError(f"unknown degradation {unknown[0]!r}; known are {known}")
        if self.pixel_scale is not None and not self.pixel_scale > 0:
            raise ValueError(f"pixel_scale must be positive, got {self.pixel_scale}")

    def thinned(self, share: float) -> DegradationConfig:
        """The same damage, each kind of it `share` (0 to 1) times as often."""
        return replace(
            self,
            skip=1.0 - share * (1.0 - self.skip),
            structured={name: share * value for name, value in self.structured.items()},
        )


DEGRADATIONS: Mapping[str, DegradationConfig] = {
    "light": DegradationConfig(strength=0.5),
    "default": DegradationConfig(),
    "heavy": DegradationConfig(strength=1.6, skip=0.2),
}
"""Presets by name."""


@dataclass(frozen=True)
class Degraded:
    """A damaged picture, in [0, 1] with the input's shape, and where it is damaged.

    mask: [H, W] in [0, 1]; how much of the photo a structured defect hides at that pixel: 1 in a
    hole, the defect's opacity elsewhere, 0 where there is none. Paper texture and the
    unstructured operations act everywhere and are not in it.
    """

    image: Array
    mask: Array


def degrade(image: Array, rng: np.random.Generator, config: DegradationConfig) -> Degraded:
    """Damage a picture as time damages photos.

    image: float32, luminance [H, W] (L/100) or RGB [H, W, 3], in [0, 1], sides of at least 16.
    rng: the only source of randomness: the same state gives the same result.
    Raises ValueError when the array is not of this kind.
    """
    _check(image)
    height, width = image.shape[:2]
    mask = np.zeros((height, width), dtype=np.float32)
    if config.strength == 0:
        return Degraded(image.copy(), mask)
    pixels = config.pixel_scale or max(1.0, min(height, width) / 256)
    scale = Scale(pixels, config.strength)
    surface_first = rng.random() < config.scan_probability
    out = image
    if not surface_first:
        out = _unstructured(out, rng, scale, config)
    for name, defect in SURFACE.items():
        if rng.random() < _probability(name, config):
            for layer in defect(height, width, rng, scale):
                out = blended(out, layer, mask)
    if surface_first:
        out = _unstructured(out, rng, scale, config)
    for name, defect in LOSSES.items():
        if rng.random() < _probability(name, config):
            for layer in defect(height, width, rng, scale):
                out = blended(out, layer, mask)
    return Degraded(np.clip(out, 0.0, 1.0).astype(np.float32, copy=False), mask)


def _check(image: Array) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.float32:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"degrade takes a float32 array, got {kind}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"degrade takes [H, W] or [H, W, 3], got {list(image.shape)}")
    if min(image.shape[:2]) < MIN_SIDE:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ValueError(f"degrade needs sides of at least {MIN_SIDE} pixels, got {size}")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # also refuses NaN
        raise ValueError(f"degrade takes values in [0, 1], got {low:.3g} to {high:.3g}")


def _probability(name: str, config: DegradationConfig) -> float:
    return config.structured.get(name, 0.0) * min(config.strength, 1.0 + config.strength / 4)


def _unstructured(
    image: Array, rng: np.random.Generator, scale: Scale, config: DegradationConfig
) -> Array:
    names = [config.unstructured[i] for i in rng.permutation(len(config.unstructured))]
    for name in names:
        if rng.random() >= config.skip or name in config.always:
            image = np.clip(OPERATIONS[name](image, rng, scale), 0.0, 1.0)
    return image


def blended(image: Array, layer: Layer, mask: Array) -> Array:
    """Blend a layer over the picture; enter its alpha into the mask (in place)."""
    alpha = layer.coverage * np.float32(layer.opacity)
    if layer.defect:
        np.maximum(mask, np.abs(alpha), out=mask)
    shade = np.asarray(layer.shade, dtype=np.float32)
    if image.ndim == 3:
        alpha = alpha[..., None]
        shade = np.asarray(shade[..., None] * np.array(layer.tint), dtype=np.float32)
    match layer.mode:
        case "add":
            out = image + alpha * shade
        case "screen":
            out = image + alpha * shade * (1 - image)
        case "lighten":
            out = np.maximum(image, alpha * shade)
        case "multiply":
            out = image * (1 - alpha * (1 - shade))
        case _:
            out = image + alpha * (shade - image)
    return np.clip(out, 0.0, 1.0)
