"""For every training photo its nearest others, as reference selection would find them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from pikfix.training.dataset import lightness
from pikfix.training.errors import TrainingError, in_one_line
from pikfix.training.features import FeatureNet
from pikfix.training.photo_store import PhotoStore, Pixels

Table = npt.NDArray[np.int32]
Vectors = npt.NDArray[np.float32]

_NET_SIDE = 192
_NET_BATCH = 16
_THUMBNAIL = 8
_CELLS = 4
_ORIENTATIONS = 8


def descriptors(photos: Iterable[Pixels], net: FeatureNet | None = None) -> Vectors:
    """One unit vector per photo `[N, D]`, from its luminance alone.

    Args:
        photos: sRGB, each `[H, W, 3]`.
        net: a frozen feature net: its last features, averaged over the picture and over its
            quarters. Without it: a thumbnail, the histogram, and gradient orientations.
    """
    if net is None:
        vectors = np.stack([_statistics(photo) for photo in photos])
    else:
        vectors = np.concatenate([_pooled_features(batch, net) for batch in _batches(photos)])
    vectors -= vectors.mean(axis=0)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(norm, 1e-8)).astype(np.float32)
    return unit


def nearest(vectors: Vectors, count: int, pool: Vectors | None = None) -> Table:
    """Indices `[N, count]` of the most similar vectors of `pool`, best first.

    Without a pool, the vectors themselves are it, and none is its own neighbour.
    """
    others = vectors if pool is None else pool
    similarity = vectors @ others.T
    if pool is None:
        np.fill_diagonal(similarity, -np.inf)
        count = min(count, len(others) - 1)
    count = min(count, len(others))
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    table: Table = order.astype(np.int32)
    return table


def save_table(path: Path, table: Table, store: PhotoStore) -> None:
    """Write a table with the names of its photos."""
    with path.open("wb") as file:
        np.savez(file, table=table, names=np.array(store.names))


def load_table(path: Path, store: PhotoStore) -> Table:
    """Read a table made for the photos of `store`.

    Args:
        path: an .npz with `table` `[N, K]`, integers, and `names` `[N]`, the photos' paths
            relative to their folder; or a .npy with the table alone, in the order of the names.
        store: the photos that are trained on.

    Raises:
        TrainingError: the file cannot be read or belongs to other photos.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            table, names = content, None
        else:
            table, names = content["table"], [str(name) for name in content["names"]]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise TrainingError(
            f"the neighbour table {path} cannot be read: {in_one_line(error)}"
        ) from error
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.integer) or not table.size:
        raise TrainingError(f"{path}: a neighbour table is [N, K] integers, not {table.shape}")
    if names is not None and names != store.names:
        table = _renumber(table, names, store, path)
    if len(table) != len(store) or table.min() < 0 or table.max() >= len(store):
        raise TrainingError(
            f"the neighbour table {path} is for {len(table)} photos, the folder has {len(store)}: "
            "make it anew"
        )
    checked: Table = table.astype(np.int32)
    return checked


def _renumber(
    table: npt.NDArray[np.int64], names: list[str], store: PhotoStore, path: Path
) -> Table:
    """Bring a table over other names into the store's order; unknown neighbours drop out."""
    position = {name: index for index, name in enumerate(store.names)}
    row_of = {name: index for index, name in enumerate(names)}
    missing = [name for name in store.names if name not in row_of]
    if missing:
        raise TrainingError(
            f"the neighbour table {path} does not know {missing[0]} and {len(missing) - 1} more "
            "photos of the folder: make it anew"
        )
    rows = []
    for name in store.names:
        known = [position[names[i]] for i in table[row_of[name]] if names[i] in position]
        rows.append(known)
    count = min(len(row) for row in rows)
    if count == 0:
        raise TrainingError(f"the neighbour table {path} is for other photos: make it anew")
    return np.array([row[:count] for row in rows], dtype=np.int32)


def _batches(photos: Iterable[Pixels]) -> Iterator[list[Pixels]]:
    remaining = iter(photos)
    while batch := list(itertools.islice(remaining, _NET_BATCH)):
        yield batch


def _pooled_features(photos: list[Pixels], net: FeatureNet) -> Vectors:
    """`[B, D]`: the last features over the whole picture and over its quarters."""
    size = (_NET_SIDE, _NET_SIDE)
    images = [Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC) for photo in photos]
    grey = torch.from_numpy(np.stack([lightness(np.asarray(image)) for image in images]))
    with torch.inference_mode():
        last = net(grey[:, None].expand(-1, 3, -1, -1))[-1]
        whole = F.normalize(last.mean(dim=(2, 3)), dim=1)
        quarters = F.normalize(F.adaptive_avg_pool2d(last, 2).flatten(1), dim=1)
    vectors: Vectors = torch.cat((whole, quarters), dim=1).float().numpy()
    return vectors


def _statistics(photo: Pixels) -> Vectors:
    image = Image.fromarray(photo).resize((64, 64), Image.Resampling.BOX)
    grey = lightness(np.asarray(image))
    thumbnail = grey.reshape(_THUMBNAIL, 64 // _THUMBNAIL, _THUMBNAIL, -1).mean(axis=(1, 3))
    counts = np.histogram(grey, bins=16, range=(0, 1))[0] / grey.size
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy)
    angle = ((np.arctan2(dy, dx) % np.pi) / np.pi * _ORIENTATIONS).astype(int) % _ORIENTATIONS
    cell = 64 // _CELLS
    texture = np.zeros((_CELLS, _CELLS, _ORIENTATIONS))
    rows, columns = np.indices(grey.shape) // cell
    np.add.at(texture, (rows, columns, angle), strength)
    parts = [thumbnail.ravel(), np.sqrt(counts), np.sqrt(texture.ravel() / cell**2)]
    unit = [part / max(float(np.linalg.norm(part)), 1e-8) for part in parts]
    vector: Vectors = np.concatenate(unit).astype(np.float32)
    return vector
