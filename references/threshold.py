"""From which score on a reference suits: what the library's own pictures find in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pikfix.references import fingerprint
from pikfix.references.manifest import Entry
from pikfix.references.scoring import Layout, Weights, score
from pikfix.references.segments import Features, gather
from pikfix.references.shortlist import Shortlist

_SAMPLE = 64
_SHORTLIST = 50
_FEWEST = 16
_DEVIATIONS = 3.0
_NORMAL = 1.4826  # median absolute deviation to standard deviation


def calibrate(
    shortlist: Shortlist, layout: Layout, segments: Sequence[Features], entries: Sequence[Entry]
) -> float:
    """Median less three deviations of the best score of a picture with the others.

    Scores have no scale of their own: it comes from the backbone and from the library. A photo
    whose best reference scores lower than nearly every picture of the library with its nearest
    other one is of a kind that the library does not have. Both estimates are robust. With fewer
    than 16 pictures there is no saying, and the threshold is 0.
    """
    if len(entries) < _FEWEST:
        return 0.0
    chosen = np.linspace(0, len(entries) - 1, min(_SAMPLE, len(entries))).astype(int)
    sample = gather(segments, [entries[i] for i in chosen])
    weights = Weights.even(len(layout.levels))
    best = []
    for number in range(len(chosen)):
        photo = (
            torch.from_numpy(sample.means[number]),
            torch.from_numpy(sample.maps[number]).float(),
        )
        numbers = shortlist.search(layout, photo, _SHORTLIST)
        others = gather(segments, [entries[i] for i in numbers])
        distance = fingerprint.distances(
            fingerprint.orientations(sample.fingerprints[number]), others.fingerprints
        )
        kept = np.flatnonzero(distance > fingerprint.COPY_DISTANCE)
        if len(kept):
            candidates = (
                torch.from_numpy(others.means[kept]),
                torch.from_numpy(others.maps[kept]),
            )
            texture, structure = score(layout, weights, photo, candidates)
            best.append(float((texture + structure).max()))
    if len(best) < _FEWEST:
        return 0.0
    median = float(np.median(best))
    deviation = _NORMAL * float(np.median(np.abs(np.array(best) - median)))
    return round(median - _DEVIATIONS * deviation, 4)
