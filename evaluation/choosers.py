"""Choosers of automatic references: the interface, the product's chooser, and a plain one.

Anything with the call signature of `ReferenceChooser` serves in the protocols.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.pictures import centre_crop, load_resized, mean_chroma, split_lab
from pikfix.photos import read_picture_file
from pikfix.photos.tint import MIN_CHROMA
from pikfix.references import LibraryError
from pikfix.references.library import CANDIDATES, Library, suitable
from pikfix.references.pictures import read_picture, reduce_luminance


class ReferenceChooser(Protocol):
    """Ranks a pool of references for a photo."""

    def __call__(self, luminance: Tensor, exclude: Path) -> Sequence[Path]:
        """Rank the references for a photo, the best first.

        Args:
            luminance: [1, 1, H, W], L/50 - 1.
            exclude: the photo's own file, which must not be among the result, nor a copy of it.
        """
        ...


class LibraryChooser:
    """Chooses from a library as server and command line do.

    By texture and structure (Pik-Fix, Xu et al., WACV 2023, sec. 3.5), and of the best ones those
    whose colours agree; see `pikfix.references`.

    Args:
        library: an opened library.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def __call__(self, luminance: Tensor, exclude: Path) -> list[Path]:
        """Rank the library for a photo [1, 1, H, W], without the photo itself and its copies."""
        picture = reduce_luminance(luminance[0, 0].float().cpu().numpy())
        try:
            # The luminance may be a damaged crop; what must not be found is the whole photo.
            original = read_picture(exclude) if exclude.is_file() else None
            ranked = self._library.rank(picture, CANDIDATES, original=original)
        except LibraryError as error:
            raise EvaluationError(str(error)) from error
        return [match.path for match in suitable(ranked, -math.inf)]


class LuminanceChooser:
    """Ranks references by global statistics of their luminance: its layout and its histogram.

    Deterministic and without weights: the plainest chooser that looks at the photo at all, which
    `LibraryChooser` has to be better than.

    Args:
        pool: reference files; grey and unreadable ones are left out (see `skipped`).
    """

    _LAYOUT = 12  # side of the thumbnail
    _BINS = 32

    def __init__(self, pool: Sequence[Path]) -> None:
        self.skipped: dict[Path, str] = {}
        self._paths: list[Path] = []
        self._digests: list[bytes] = []
        features = []
        for path in pool:
            try:
                picture = centre_crop(load_resized(path))
            except EvaluationError as error:
                self.skipped[path] = str(error)
                continue
            if mean_chroma(picture) < MIN_CHROMA:
                self.skipped[path] = f"{path} is grey: it has no colour to give"
                continue
            self._paths.append(path)
            self._digests.append(file_digest(path))
            features.append(self._describe(split_lab(picture)[0][None]))
        if not features:
            raise EvaluationError("no usable reference: the folder needs readable colour photos")
        self._features = torch.stack(features)

    def __call__(self, luminance: Tensor, exclude: Path) -> list[Path]:
        """Rank the pool for a photo [1, 1, H, W], without the photo itself."""
        distance = (self._features - self._describe(luminance)).abs().sum(dim=1)
        order = torch.argsort(distance, stable=True).tolist()
        own = file_digest(exclude) if exclude.is_file() else None
        return [self._paths[i] for i in order if self._digests[i] != own]

    def _describe(self, luminance: Tensor) -> Tensor:
        """Mean absolute differences of both parts lie on one scale, 0 to 1."""
        light = (luminance.float().cpu() + 1) / 2
        layout = F.adaptive_avg_pool2d(light, self._LAYOUT).flatten()
        histogram = torch.histc(light, self._BINS, 0.0, 1.0) / light.numel()
        cumulative = torch.cumsum(histogram, dim=0)
        return torch.cat((layout / layout.numel(), cumulative / cumulative.numel()))


def file_digest(path: Path) -> bytes:
    """Digest of a file's bytes: a copy under another name is still the same photo."""
    return hashlib.sha256(read_picture_file(path)).digest()
