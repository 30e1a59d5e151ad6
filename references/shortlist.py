"""The first stage: one short vector per picture, whose inner products approximate the scores.

Texture: T(x, y) = 1 / cosh(log m_x - log m_y) per channel is a positive definite kernel (the
hyperbolic secant is its own Fourier transform), so that Nystroem's method (Williams and Seeger,
NIPS 2000) with some of the pictures as landmarks gives vectors with <u, v> close to T.
Structure: S is the correlation of two maps, lessened where their variances differ; the correlation
is the inner product of the centred maps at unit length, which a principal component analysis
shortens. The vectors of both, side by side, are searched by faiss: exactly in a small library, by
an inverted file in a large one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pikfix.references.errors import LibraryError
from pikfix.references.manifest import Entry
from pikfix.references.scoring import Layout, structure_vectors, texture
from pikfix.references.segments import Features, gather

INDEX_PREFIX = "index-"
EXACT_LIMIT = 50_000
"""Pictures up to which the search is exact: 20 ms on one core."""
_LANDMARKS = 64
_TEXTURE_DIMENSIONS = 48
_STRUCTURE_DIMENSIONS = 64
_SAMPLE = 4096
_CHUNK = 1024
_PROBED_SHARE = 0.04
_PROJECTION, _VECTORS, _INVERTED = "projection.npz", "vectors.npy", "inverted.faiss"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """Turns features into vectors.

    Attributes:
        landmarks: means [M, C] of the landmarks.
        texture_weights: [M, D_t], the inverse square root of the landmarks' kernel.
        centre: mean structure vector [V].
        components: [V, D_s], principal components of structure vectors.
    """

    landmarks: Tensor
    texture_weights: Tensor
    centre: Tensor
    components: Tensor

    def vectors(self, layout: Layout, means: Tensor, maps: Tensor, *, query: bool) -> Floats:
        """Vectors `[N, D]` of means `[N, C]` and maps `[N, V]`.

        With u centred, <x, y> = <x - u, y - u> + <u, y> + a constant of x: one more number, 1 for
        the photo and <u, y> for a candidate, makes up for the centring.
        """
        kernel = _texture_kernel(layout, means, self.landmarks)
        shape = structure_vectors(layout, maps)
        last = torch.ones(len(means)) if query else shape @ self.centre
        parts = (
            kernel @ self.texture_weights,
            (shape - self.centre) @ self.components,
            last[:, None],
        )
        found: Floats = torch.cat(parts, dim=1).numpy().astype(np.float32)
        return found


def _texture_kernel(layout: Layout, means: Tensor, landmarks: Tensor) -> Tensor:
    weights = torch.cat(
        [torch.full((c,), 1.0 / (c * len(layout.levels))) for c, _ in layout.levels]
    )
    return torch.stack([texture(one, means) @ weights for one in landmarks], dim=1)


def _fit(layout: Layout, segments: Sequence[Features], entries: Sequence[Entry]) -> Projection:
    generator = np.random.default_rng(0)
    sample = generator.permutation(len(entries))[:_SAMPLE].tolist()
    features = gather(segments, [entries[i] for i in sample])
    means = torch.from_numpy(features.means)
    landmarks = means[:_LANDMARKS].clone()
    kernel = _texture_kernel(layout, landmarks, landmarks)
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
    # Directions that hold next to nothing would amplify rounding errors.
    kept = values > 1e-4 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    dimensions = min(_TEXTURE_DIMENSIONS, len(values))
    texture_weights = vectors[:, -dimensions:] / values[-dimensions:].sqrt()
    shapes = structure_vectors(layout, torch.from_numpy(features.maps))
    centre = shapes.mean(dim=0)
    rank = min(_STRUCTURE_DIMENSIONS, len(shapes))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        components = torch.pca_lowrank(shapes, rank, center=True, niter=3)[2]
    return Projection(landmarks, texture_weights, centre, components)


def build_shortlist(
    library: Path, layout: Layout, segments: Sequence[Features], entries: Sequence[Entry]
) -> str:
    """Write the index over some entries, in their order, and return its folder's name."""
    folder = library / f"{INDEX_PREFIX}{secrets.token_hex(6)}"
    folder.mkdir()
    projection = _fit(layout, segments, entries)
    np.savez(folder / _PROJECTION, **{k: v.numpy() for k, v in vars(projection).items()})
    width = projection.texture_weights.shape[1] + projection.components.shape[1] + 1
    out = np.lib.format.open_memmap(
        folder / _VECTORS, mode="w+", dtype=np.float32, shape=(len(entries), width)
    )
    for start in range(0, len(entries), _CHUNK):
        part = gather(segments, entries[start : start + _CHUNK])
        out[start : start + _CHUNK] = projection.vectors(
            layout, torch.from_numpy(part.means), torch.from_numpy(part.maps), query=False
        )
    out.flush()
    if len(entries) > EXACT_LIMIT:
        write_inverted(out, folder / _INVERTED)
    return folder.name


def write_inverted(vectors: npt.NDArray[np.float32], path: Path) -> None:
    """Write an inverted file over vectors [N, D] for searches by inner product."""
    lists = int(4 * len(vectors) ** 0.5)
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.cp.niter = 10
    index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // (40 * lists))]))
    for start in range(0, len(vectors), 65536):
        index.add(np.ascontiguousarray(vectors[start : start + 65536]))
    faiss.write_index(index, str(path))


class Shortlist:
    """An opened index.

    Args:
        projection: how a photo becomes a vector.
        vectors: [N, D] of the pictures, mapped into memory.
        inverted: the inverted file of a large library, or None.
    """

    def __init__(self, projection: Projection, vectors: Floats, inverted: Any = None) -> None:
        self._projection, self._vectors, self._inverted = projection, vectors, inverted

    @classmethod
    def load(cls, folder: Path) -> Shortlist:
        """Open the index in a folder.

        Raises:
            FileNotFoundError: one of its files is missing.
            LibraryError: one of them is damaged.
        """
        try:
            with np.load(folder / _PROJECTION, allow_pickle=False) as file:
                projection = Projection(**{name: torch.from_numpy(file[name]) for name in file})
            vectors = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
            width = projection.texture_weights.shape[1] + projection.components.shape[1] + 1
            if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != width:
                raise ValueError("its parts do not fit together")
            inverted: Any = None
            if len(vectors) > EXACT_LIMIT:
                if not (folder / _INVERTED).is_file():
                    raise FileNotFoundError(2, "No such file", str(folder / _INVERTED))
                inverted = faiss.read_index(str(folder / _INVERTED), faiss.IO_FLAG_MMAP)
                inverted.nprobe = max(1, int(_PROBED_SHARE * inverted.nlist))
                if inverted.ntotal != len(vectors):
                    raise ValueError("its parts differ in length")
        except FileNotFoundError:
            raise
        # zipfile, numpy and faiss each have their own errors for a damaged file.
        except Exception as error:
            reason = " ".join(str(error).split())[:100]
            raise LibraryError(
                f"{folder} is damaged ({reason}): build the library again"
            ) from error
        return cls(projection, vectors, inverted)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._vectors)

    def search(self, layout: Layout, photo: tuple[Tensor, Tensor], count: int) -> list[int]:
        """Numbers of the pictures most like a photo, means `[C]` and maps `[V]`, best first."""
        query = self._projection.vectors(layout, photo[0][None], photo[1][None], query=True)
        count = min(count, len(self))
        if self._inverted is None:
            _, found = faiss.knn(query, self._vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            _, found = self._inverted.search(query, count)
        return [int(number) for number in found[0] if number >= 0]
