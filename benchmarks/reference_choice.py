"""What the choice of references is worth in colours: PSNR by rank, by number, at random.

    python benchmarks/reference_choice.py CHECKPOINT --photos DIR --queries DIR -o NAME

Every query is colorized after each of its ten best references by score alone, after photos drawn
at random, after what server and command line take (of the best ones by score those whose colours
agree), one, two, three and five together, and after as many by score alone. Writes NAME.json and
NAME.md. Compare the paper's figure 5 (Pik-Fix, Xu et al., WACV 2023).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import processor, write_results
from torch import Tensor

from pikfix.evaluation import baselines
from pikfix.evaluation.metrics import colorfulness, psnr
from pikfix.evaluation.pictures import (
    centre_crop,
    compose,
    load_resized,
    split_lab,
    stack_references,
)
from pikfix.photos.search import find_pictures
from pikfix.references.builder import build_library
from pikfix.references.library import CANDIDATES, Library, Match, suitable
from pikfix.references.pictures import read_picture, reduce_luminance
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint, to_working

RANKS = 10
TOGETHER = (1, 2, 3, 5)
RANDOM = 4
SEED = 0

Figures = dict[str, float]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="colour photos of the library")
    parser.add_argument("--queries", type=Path, required=True, help="photos to colorize")
    parser.add_argument("--limit", type=int, help="queries, evenly spread over the folder")
    parser.add_argument("--library", type=Path, help="folder to keep the library in")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, required=True, help="without its suffix")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    queries = spread(sorted(find_pictures(args.queries).pictures), args.limit)
    model = load_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory(prefix="pikfix-benchmark-") as scratch:
        folder = args.library or Path(scratch) / "library"
        build_library(args.photos, folder, backbone=args.checkpoint)
        library = Library(folder)
        rows = [measure(model, library, path) for path in progress(queries)]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "faiss-cpu")},
        "checkpoint": args.checkpoint.name,
        "library": len(library),
        "queries": len(rows),
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
        "rows": {path.name: row for path, row in zip(queries, rows, strict=True)},
    }
    write_results(args.out, result, report(result))
    print(report(result))


def spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the paths, evenly spaced."""
    if limit is None or limit >= len(paths):
        return list(paths)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]


def progress(queries: Sequence[Path]) -> Iterable[Path]:
    """Go through the queries and say how far it is."""
    for number, path in enumerate(queries):
        if number % 10 == 0:
            print(f"{number}/{len(queries)}", file=sys.stderr, flush=True)
        yield path


@torch.inference_mode()
def measure(model: PikFix, library: Library, path: Path) -> Figures:
    """PSNR in dB, and colourfulness, of every way to colorize one photo."""
    truth = centre_crop(load_resized(path))
    luminance, _ = split_lab(truth)
    picture = reduce_luminance(luminance[0].numpy())
    ranked = library.rank(picture, CANDIDATES, original=read_picture(path))
    pictures = [load(match) for match in ranked[:RANKS]]
    taken = [load(match) for match in suitable(ranked, -np.inf)[: max(TOGETHER)]]
    rng = np.random.default_rng([SEED, zlib.crc32(path.name.encode())])
    drawn = rng.choice(len(library), RANDOM, replace=False)
    names = [library.manifest.entries[i].name for i in drawn]
    others = [centre_crop(load_resized(library.pictures / name)) for name in names]

    alone = [colorize(model, luminance, [reference]) for reference in [*pictures, *others]]
    scores = [psnr(result, truth) for result in alone]
    figures: Figures = {
        "grey": psnr(baselines.grey(luminance), truth),
        "random": float(np.mean(scores[len(pictures) :])),
        "oracle": max(scores[: len(pictures)]),
        "colourfulness truth": colorfulness(truth),
        "colourfulness random": colorfulness(alone[-1]),
    }
    figures |= {f"rank {i + 1}": score for i, score in enumerate(scores[: len(pictures)])}
    for name, references in (("by score", pictures), ("taken", taken)):
        for count in TOGETHER:
            result = colorize(model, luminance, references[:count])
            figures[f"{count} {name}"] = psnr(result, truth)
            figures[f"colourfulness {count} {name}"] = colorfulness(result)
    return figures


def load(match: Match) -> Tensor:
    """The reference as evaluation and training see it: a square of 256 pixels."""
    return centre_crop(load_resized(match.path))


def colorize(model: PikFix, luminance: Tensor, references: list[Tensor]) -> Tensor:
    """The photo `[3, H, W]` in [0, 1], its luminance untouched."""
    working = to_working(luminance[None])
    with torch.autocast("cpu", torch.bfloat16):  # as served, and twice as fast
        warped, confidence = model.similarity(working, stack_references(references))
        ab = model.colorization(working, warped, confidence)
    return compose(luminance, ab[0].float())


def report(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    mean = result["mean"]
    chance, oracle = mean["random"], mean["oracle"]
    lines = [
        "# What the choice of references is worth",
        "",
        f"{result['queries']} photos of 256 x 256, a library of {result['library']}, checkpoint "
        f"{result['checkpoint']}; mean PSNR in dB of the colorized photo. {result['date']}, "
        f"{result['machine']}, networks in bfloat16, torch {result['versions']['torch']}.",
        "",
        "| references | PSNR | over random | error of that | of the way to the oracle | "
        "colourfulness |",
        "|---|---|---|---|---|---|",
    ]
    for name, value in mean.items():
        if name.startswith("colourfulness"):
            continue
        way = (value - chance) / (oracle - chance)
        over = np.array([row[name] - row["random"] for row in result["rows"].values()])
        error = over.std(ddof=1) / len(over) ** 0.5
        colours = mean.get(f"colourfulness {name}")
        shown = "" if colours is None else f"{colours:.1f}"
        lines.append(
            f"| {name} | {value:.2f} | {over.mean():+.2f} | {error:.2f} | {way:.0%} | {shown} |"
        )
    lines += [
        "",
        f"`random` is one photo of the library (mean of {RANDOM} draws), `oracle` the best of "
        "ranks 1 to 10 for each photo, as nobody can know it. `N by score` are the best N given "
        f"together, `N taken` those of the best {CANDIDATES} whose colours agree most with the "
        "others', which is what server and command line give. The error is the standard error of "
        "the mean difference over the photos. Colourfulness of the true photos: "
        f"{mean['colourfulness truth']:.1f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
