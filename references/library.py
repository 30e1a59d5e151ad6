"""A library of references: opened once, it ranks its pictures for any photo.

Two stages: the index of global statistics gives a shortlist, whose features alone are read and
scored by texture and structure (Pik-Fix, Xu et al., WACV 2023, sec. 3.5). Of the best ones, those
are taken whose colours agree (`pikfix.references.agreement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pikfix.references import fingerprint
from pikfix.references.agreement import consensus
from pikfix.references.backbone import Backbone, load_backbone
from pikfix.references.errors import LibraryError
from pikfix.references.manifest import Entry, Manifest, read_manifest
from pikfix.references.pictures import Picture
from pikfix.references.scoring import Layout, Weights, pool_features, score
from pikfix.references.segments import gather, open_segment
from pikfix.references.shortlist import Shortlist

SHORTLIST = 200
"""Candidates that texture and structure are computed for."""
CANDIDATES = 16
"""Best ones by score whose agreement decides which are taken."""
DEFAULT_COUNT = 1
"""References that a photo gets where nothing else is asked for; more of those whose colours agree
are no better (benchmarks/results/reference-choice.md), and cost as much time each."""
MIN_SCORE_RATIO = 0.8
"""Part of the best score that a further reference needs. Every position of every reference takes
part in the match; one that shows something else only dilutes the colours of the one that suits."""


@dataclass(frozen=True)
class Match:
    """A reference for a photo.

    Attributes:
        name: path relative to the folder of pictures.
        path: the picture file.
        score: texture + structure, at most 1.
        texture: its weighted share, sum of alpha T.
        structure: its weighted share, sum of beta S.
        palette: its mean colours, see `agreement.palette`.
    """

    name: str
    path: Path
    score: float
    texture: float
    structure: float
    palette: tuple[float, ...]


class _Scored(NamedTuple):
    entry: Entry
    texture: float
    structure: float
    fingerprint: fingerprint.Bytes
    palette: tuple[float, ...]


class Library:
    """An opened library. Safe to read while it is being built anew; it stays what it was.

    Args:
        path: its folder.
        weights: of texture and structure; even ones where None.

    Raises:
        LibraryError: it is missing, damaged, of another version or with another backbone.
    """

    def __init__(self, path: Path, weights: Weights | None = None) -> None:
        self.path = path
        try:
            self._load(read_manifest(path))
        except FileNotFoundError:
            # A build may just have replaced what the manifest named.
            try:
                self._load(read_manifest(path))
            except FileNotFoundError as error:
                raise LibraryError(
                    f"{error.filename} is missing: build the library again"
                ) from error
        self.weights = weights or Weights.even(len(self.layout.levels))
        if len(self.weights.alpha) != len(self.layout.levels):
            raise LibraryError(
                f"{len(self.weights.alpha)} weights were given, the library's backbone "
                f"has {len(self.layout.levels)} levels"
            )

    def _load(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.layout = Layout(manifest.levels)
        self._segments = [open_segment(self.path / name, self.layout) for name in manifest.segments]
        for entry in manifest.entries:
            if entry.row >= len(self._segments[entry.segment].means):
                raise LibraryError(
                    f"{self.path}: the features of {entry.name} are missing: build it again"
                )
        self._shortlist = Shortlist.load(self.path / manifest.index)
        if len(self._shortlist) != len(manifest.entries):
            raise LibraryError(
                f"{self.path / manifest.index} does not fit the library: build it again"
            )
        self.backbone = open_backbone(self.path, manifest)
        self.pictures = manifest.folder(self.path)

    def __len__(self) -> int:
        """Number of usable pictures."""
        return len(self.manifest.entries)

    @property
    def threshold(self) -> float:
        """Score that the best reference should have; where none has it, none suits."""
        return self.manifest.threshold

    def rank(
        self,
        picture: Picture,
        top: int = DEFAULT_COUNT,
        *,
        shortlist: int = SHORTLIST,
        copies: bool = False,
        original: Picture | None = None,
    ) -> list[Match]:
        """Rank the library for a photo by score, the best first; `suitable` decides what to take.

        Args:
            picture: the photo, reduced; only its luminance counts.
            top: how many to return at most.
            shortlist: candidates to score.
            copies: keep copies of the photo itself among the result.
            original: what the photo was made from by cropping or damaging it; its copies are
                left out as well.

        Raises:
            LibraryError: pictures were found, but none of their files exists any more.
        """
        photo = describe(self.backbone, picture)
        found = self._score(photo, max(shortlist, top))
        if not copies:
            found = self._without_copies(
                found, [picture] if original is None else [picture, original]
            )
        matches: list[Match] = []
        missing = 0
        for one in found:
            path = self.pictures / one.entry.name
            if not path.is_file():
                missing += 1
                continue
            total = one.texture + one.structure
            matches.append(
                Match(one.entry.name, path, total, one.texture, one.structure, one.palette)
            )
            if len(matches) == top:
                break
        if missing and not matches:
            raise LibraryError(
                f"none of the library's pictures is in {self.pictures} any more: put them back, "
                "or build the library again"
            )
        return matches

    def _score(self, photo: tuple[Tensor, Tensor], count: int) -> list[_Scored]:
        """Score a shortlist, the best first."""
        numbers = self._shortlist.search(self.layout, photo, count)
        entries = [self.manifest.entries[number] for number in numbers]
        features = gather(self._segments, entries)
        candidates = (torch.from_numpy(features.means), torch.from_numpy(features.maps))
        texture, structure = score(self.layout, self.weights, photo, candidates)
        order = torch.argsort(texture + structure, descending=True, stable=True).tolist()
        return [
            _Scored(
                entries[i],
                float(texture[i]),
                float(structure[i]),
                features.fingerprints[i],
                tuple(features.palettes[i].tolist()),
            )
            for i in order
        ]

    def _without_copies(self, found: list[_Scored], of: Sequence[Picture]) -> list[_Scored]:
        if not found:
            return found
        own = np.concatenate(
            [fingerprint.orientations(fingerprint.fingerprint(picture.luminance)) for picture in of]
        )
        distance = fingerprint.distances(own, np.stack([one.fingerprint for one in found]))
        return [
            one
            for one, bits in zip(found, distance, strict=True)
            if bits > fingerprint.COPY_DISTANCE
        ]


def suitable(ranked: Sequence[Match], threshold: float) -> list[Match]:
    """What a photo should be colorized after, the first first; none where the best does not suit.

    Args:
        ranked: by score, the best first, `CANDIDATES` of them; further ones are left out.
        threshold: score that the best needs (`Library.threshold`); -inf takes it in any case.
    """
    if not ranked or ranked[0].score < threshold:
        return []
    least = max(threshold, MIN_SCORE_RATIO * ranked[0].score)
    kept = [match for match in ranked[:CANDIDATES] if match is ranked[0] or match.score >= least]
    return [kept[i] for i in consensus(np.array([match.palette for match in kept]))]


def describe(backbone: Backbone, picture: Picture) -> tuple[Tensor, Tensor]:
    """Means `[C]` and maps `[V]` of a picture."""
    luminance = torch.from_numpy(picture.luminance)[None, None]
    _, means, maps = pool_features(backbone(luminance))
    return means[0], maps[0]


def open_backbone(path: Path, manifest: Manifest) -> Backbone:
    """Load the backbone a library was built with.

    Raises:
        FileNotFoundError: its file is missing.
        LibraryError: its file is damaged, or holds other weights than the library was built with.
    """
    file = path / manifest.backbone_file
    if not file.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(file))
    backbone = load_backbone(file)
    if backbone.digest != manifest.backbone_digest:
        raise LibraryError(
            f"{file} is another backbone ({backbone.digest[:12]}) than the library was built with "
            f"({manifest.backbone_digest[:12]}): build it again and give that one with --backbone"
        )
    return backbone
