"""The photos of a load test: a realistic mix of sizes, cut from scikit-image's samples."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from PIL import Image
from skimage import data

MIX = (
    (256, 256, 0.30),  # thumbnails and passport photos
    (384, 256, 0.30),
    (512, 384, 0.25),
    (640, 512, 0.10),
    (1024, 768, 0.05),  # small scans
)
"""Width, height and share. Large scans belong on a GPU; `--scale` makes all of them larger."""


@dataclass(frozen=True)
class Sample:
    """One file to send, and its size."""

    width: int
    height: int
    photo: bytes
    reference: bytes


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def samples(scale: float = 1.0) -> list[tuple[Sample, float]]:
    """One encoded photo for each size and subject, with its share."""
    subjects = [Image.fromarray(load()) for load in (data.astronaut, data.chelsea, data.rocket)]
    reference = _jpeg(Image.fromarray(data.coffee()).resize((256, 192)))
    found = []
    for width, height, share in MIX:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        for subject in subjects:
            photo = _jpeg(subject.resize(size).convert("L"))
            found.append((Sample(*size, photo, reference), share / len(subjects)))
    return found


class Mix:
    """Draws samples by their shares, repeatably."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        self._random = random.Random(seed)
        self._samples, self._shares = zip(*samples(scale), strict=True)

    def draw(self) -> Sample:
        """The next photo to send."""
        drawn: Sample = self._random.choices(self._samples, self._shares)[0]
        return drawn

    def all(self) -> tuple[Sample, ...]:
        """Every sample once, for warming up."""
        return tuple(self._samples)
