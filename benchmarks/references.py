"""Times, sizes and hit rates of reference selection, written with machine and versions beside them.

    python benchmarks/references.py --photos DIR --queries DIR --backbone FILE -o RESULT.json

Three parts: copies of the queries recognised and false exclusions among the photos; building and
ranking a library of the photos; ranking a library of synthetic features as large as asked for.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import processor
from PIL import Image, ImageOps

from pikfix.photos import write_atomically
from pikfix.photos.search import find_pictures
from pikfix.references import agreement, fingerprint
from pikfix.references.backbone import load_backbone
from pikfix.references.builder import build_library
from pikfix.references.errors import LibraryError
from pikfix.references.library import SHORTLIST, Library, describe
from pikfix.references.manifest import Manifest
from pikfix.references.pictures import read_picture, reduce_picture
from pikfix.references.scoring import Layout, pool_features, score
from pikfix.references.segments import Features, SegmentWriter, gather, open_segment
from pikfix.references.shortlist import Shortlist, build_shortlist

Image_ = Image.Image


def find(folder: Path) -> list[Path]:
    """Picture files of a folder."""
    return sorted(find_pictures(folder).pictures)


def encoded(image: Image_, name: str, quality: int) -> Image_:
    """The picture after encoding and decoding."""
    file = io.BytesIO()
    image.save(file, name, quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def half(image: Image_) -> Image_:
    """The picture at half its size."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image_], Image_]] = {
    "jpeg_40": lambda image: encoded(image, "JPEG", 40),
    "jpeg_85": lambda image: encoded(image, "JPEG", 85),
    "webp_50": lambda image: encoded(image, "WEBP", 50),
    "mirrored": ImageOps.mirror,
    "half": half,
    "half_mirrored_jpeg_60": lambda image: encoded(half(ImageOps.mirror(image)), "JPEG", 60),
    "grey_jpeg_70": lambda image: encoded(image.convert("L").convert("RGB"), "JPEG", 70),
}


def measure_copies(photos: Sequence[Path], queries: Sequence[Path]) -> dict[str, Any]:
    """Share of copies recognised, and of queries that exclude a photo that is no copy."""
    pool = np.stack([fingerprint.fingerprint(read_picture(path).luminance) for path in photos])
    nearest, found = [], {name: [] for name in COPIES}
    for path in queries:
        image = Image.open(path).convert("RGB")
        own = fingerprint.fingerprint(reduce_picture(np.asarray(image)).luminance)
        nearest.append(int(fingerprint.distances(fingerprint.orientations(own), pool).min()))
        for name, change in COPIES.items():
            copy = fingerprint.fingerprint(reduce_picture(np.asarray(change(image))).luminance)
            turned = fingerprint.orientations(copy)
            found[name].append(int(fingerprint.distances(turned, own[None])[0]))
    limit = fingerprint.COPY_DISTANCE
    return {
        "queries": len(queries),
        "pool": len(photos),
        "limit_bits": limit,
        "recognised": {name: float(np.mean(np.array(v) <= limit)) for name, v in found.items()},
        "largest_distance_of_a_copy": {name: max(v) for name, v in found.items()},
        "queries_with_false_exclusion": float(np.mean(np.array(nearest) <= limit)),
        "smallest_distance_to_another_photo": min(nearest),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ms = sorted(1000 * value for value in seconds)
    return {
        "p50_ms": round(statistics.median(ms), 2),
        "p95_ms": round(ms[int(0.95 * (len(ms) - 1))], 2),
        "max_ms": round(ms[-1], 2),
    }


def measure_ranking(library: Library, queries: Sequence[Path]) -> dict[str, Any]:
    """Time of each stage per photo, and what the shortlist finds of an exhaustive ranking."""
    stages: dict[str, list[float]] = {"features": [], "shortlist": [], "rerank": [], "rank": []}
    recall = []
    entries = library.manifest.entries
    everything = None
    if len(library) <= 5000:
        everything = gather(library._segments, entries)
    for path in queries:
        picture = read_picture(path)
        start = time.perf_counter()
        photo = describe(library.backbone, picture)
        described = time.perf_counter()
        numbers = library._shortlist.search(library.layout, photo, SHORTLIST)
        listed = time.perf_counter()
        features = gather(library._segments, [entries[n] for n in numbers])
        candidates = (torch.from_numpy(features.means), torch.from_numpy(features.maps))
        score(library.layout, library.weights, photo, candidates)
        scored = time.perf_counter()
        library.rank(picture, 3) if everything is not None else None
        done = time.perf_counter()
        for name, value in zip(
            stages,
            (described - start, listed - described, scored - listed, done - scored),
            strict=True,
        ):
            stages[name].append(value)
        if everything is not None:
            pool = (torch.from_numpy(everything.means), torch.from_numpy(everything.maps))
            best = sum(score(library.layout, library.weights, photo, pool)).topk(10).indices
            for size in (50, SHORTLIST):
                recall.append((size, len(set(numbers[:size]) & set(best.tolist())) / 10))
    if everything is None:
        del stages["rank"]
    out: dict[str, Any] = {name: spread(values) for name, values in stages.items()}
    for size in sorted({size for size, _ in recall}):
        out[f"best_ten_in_first_{size}"] = float(np.mean([r for s, r in recall if s == size]))
    return out


def folder_bytes(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def anonymous_mb() -> float:
    """Memory of this process that is not a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure_real(
    photos: Path, queries: Sequence[Path], backbone: Path, jobs: int, work: Path
) -> dict[str, Any]:
    """Build a library of real photos, bring it up to date, rank it."""
    folder = work / "real"
    start = time.perf_counter()
    built = build_library(photos, folder, backbone=backbone, jobs=jobs)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    build_library(photos, folder, jobs=jobs)
    again = time.perf_counter() - start
    library = Library(folder)
    best = [library.rank(read_picture(path), 1)[0].score for path in queries]
    return {
        "photos": built.usable,
        "left_out": len(built.left_out),
        "build_s": round(seconds, 2),
        "build_unchanged_s": round(again, 2),
        "bytes": folder_bytes(folder),
        "threshold": library.threshold,
        "best_score_quantiles": np.quantile(best, [0, 0.01, 0.05, 0.5, 1]).round(4).tolist(),
        "queries_below_threshold": float(np.mean(np.array(best) < library.threshold)),
        "ranking": measure_ranking(library, queries),
    }


def measure_synthetic(
    count: int, queries: Sequence[Path], backbone: Path, work: Path
) -> dict[str, Any]:
    """Rank synthetic features: mixtures of the features of real photos, so many as asked for."""
    network = load_backbone(backbone)
    generator = np.random.default_rng(0)
    pictures = torch.from_numpy(np.stack([read_picture(p).luminance for p in queries]))
    parts = [pool_features(network(batch[:, None])) for batch in pictures.split(16)]
    layout: Layout = parts[0][0]
    means, maps = (torch.cat([part[i] for part in parts]).numpy() for i in (1, 2))
    folder = work / "synthetic"
    folder.mkdir()
    writer = SegmentWriter(folder / "segment-synthetic", layout, count, network.digest)
    entries = []
    for start in range(0, count, 500):
        size = min(500, count - start)
        first, second = generator.integers(0, len(means), (2, size))
        share = generator.random((size, 1), np.float32)
        noise = generator.normal(1, 0.15, (size, layout.channels)).astype(np.float32)
        repeats = np.concatenate([np.full(c, side * side) for c, side in layout.levels])
        rows = Features(
            (share * means[first] + (1 - share) * means[second]) * np.abs(noise),
            (
                (share * maps[first] + (1 - share) * maps[second])
                * np.abs(np.repeat(noise, repeats, axis=1))
            ).astype(np.float16),
            generator.integers(0, 256, (size, 32), dtype=np.uint8),
            generator.normal(0, 0.1, (size, agreement.VALUES)).astype(np.float32),
        )
        for row in range(size):
            key = (f"{start + row}.jpg", 1, start + row)
            entries.append(writer.add(key, rows, row, 0))
    writer.close(durable=True)
    segments = [open_segment(folder / "segment-synthetic", layout)]
    begin = time.perf_counter()
    index = build_shortlist(folder, layout, segments, entries)
    index_seconds = time.perf_counter() - begin
    write_atomically(folder / "backbone-synthetic.safetensors", network.to_bytes())
    Manifest(
        pictures=str(work),
        pictures_relative="..",
        backbone_kind=network.kind,
        backbone_digest=network.digest,
        backbone_file="backbone-synthetic.safetensors",
        levels=layout.levels,
        threshold=0.0,
        index=index,
        segments=("segment-synthetic",),
        entries=tuple(entries),
        left_out=(),
    ).write(folder)
    begin = time.perf_counter()
    library = Library(folder)
    opened = time.perf_counter() - begin
    before = anonymous_mb()
    ranking = measure_ranking(library, queries)
    memory = anonymous_mb() - before
    vectors = library._shortlist
    exact = Shortlist(vectors._projection, vectors._vectors)
    recall, exact_seconds = [], []
    for path in queries[:20]:
        photo = describe(network, read_picture(path))
        begin = time.perf_counter()
        expected = exact.search(layout, photo, 20)
        exact_seconds.append(time.perf_counter() - begin)
        found = vectors.search(layout, photo, SHORTLIST)
        recall.append(len(set(expected) & set(found)) / 20)
    return {
        "entries": count,
        "index_build_s": round(index_seconds, 2),
        "index_bytes": folder_bytes(folder / index),
        "bytes": folder_bytes(folder),
        "open_s": round(opened, 2),
        "exact_first_20_found_by_inverted_file": float(np.mean(recall)),
        "exact_search": spread(exact_seconds),
        "memory_beyond_mapped_files_mb": round(memory),
        "ranking": ranking,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="colour photos of the library")
    parser.add_argument("--queries", type=Path, required=True, help="photos to rank them for")
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--synthetic", type=int, default=100_000, metavar="N")
    parser.add_argument("--limit", type=int, default=100, help="queries that are timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", default="copies,real,synthetic")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    queries = find(args.queries)
    if not queries:
        raise LibraryError(f"there are no pictures in {args.queries}")
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": processor()},
        "threads": args.threads,
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "numpy", "faiss-cpu")
        },
        "backbone": load_backbone(args.backbone).digest[:16],
    }
    result["machine"]["cores"] = os.cpu_count()
    timed = queries[: args.limit]
    with tempfile.TemporaryDirectory(prefix="pikfix-benchmark-") as folder:
        work = Path(folder)
        if "copies" in args.parts:
            result["copies"] = measure_copies(find(args.photos), queries)
        if "real" in args.parts:
            result["real"] = measure_real(args.photos, timed, args.backbone, args.threads, work)
        if "synthetic" in args.parts:
            result["synthetic"] = measure_synthetic(args.synthetic, timed, args.backbone, work)
    write_atomically(args.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
