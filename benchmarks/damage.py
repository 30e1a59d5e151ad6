"""What restoration does to each kind of damage by itself, and to all of them together.

    python benchmarks/damage.py CHECKPOINT... --photos DIR -o NAME

Networks that learn from photos in which everything is damaged at once can make a photo worse that
has a few scratches only, and a mean over the whole mixture does not show it. Measures the PSNR of
luminance before and after by the protocol `restore`: for undamaged photos, for every kind of damage
alone, each certain to occur, and for the presets of damage; and, for scale, what the best curve and
the best linear filter would give, both fitted to the truth of each photo, as nobody can. Writes
NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import processor, write_results

from pikfix.evaluation.evaluator import evaluate
from pikfix.evaluation.metrics import psnr
from pikfix.evaluation.protocols import PROTOCOLS
from pikfix.networks import PikFix, load_checkpoint
from pikfix.photos.search import find_pictures
from pikfix.training.degradation import (
    DEGRADATIONS,
    STRUCTURED,
    UNSTRUCTURED,
    DegradationConfig,
    degrade,
)

BANDS = 48
"""Of spatial frequency, in which the best filter has one gain each."""
WITHOUT_EFFECT = "toning"
"""Changes colours alone; luminance has none."""


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--photos", type=Path, required=True, help="colour photos never trained on")
    parser.add_argument("--limit", type=int, default=50, help="of the photos, the first so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, required=True, help="without its suffix")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photos = sorted(find_pictures(args.photos).pictures)[: args.limit]
    models = [load_checkpoint(path) for path in args.checkpoints]
    rows = {}
    for name, config in kinds().items():
        print(name, file=sys.stderr, flush=True)
        rows[name] = measure(models, photos, config)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "torch": torch.__version__,
        "checkpoints": [path.name for path in args.checkpoints],
        "photos": len(photos),
        "rows": rows,
    }
    write_results(args.out, result, report(result))
    print(report(result))


def kinds() -> dict[str, DegradationConfig]:
    """Damage by name: none, each kind alone, and the presets."""
    alone = {
        name: DegradationConfig(unstructured=(name,), always=(name,), structured={})
        for name in UNSTRUCTURED
        if name != WITHOUT_EFFECT
    }
    defects = {
        name: DegradationConfig(unstructured=(), structured={name: 1.0}) for name in STRUCTURED
    }
    return {"none": DegradationConfig(strength=0), **alone, **defects, **DEGRADATIONS}


def measure(
    models: Sequence[PikFix], photos: Sequence[Path], config: DegradationConfig
) -> dict[str, Any]:
    """Mean PSNR in dB of the damaged photos, of the best fit, and of what each model makes."""
    fitted: list[float] = []  # once for every model, of the same damage: the mean is the same

    def damage(
        luminance: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        damaged = degrade(luminance, rng, config).image
        fitted.append(best_fit(damaged, luminance))
        return damaged

    restore = PROTOCOLS["restore"]
    found = [evaluate(model, photos, restore, degrade=damage).means for model in models]
    return {
        "input": found[0]["input"]["psnr"],
        "best_fit": float(np.mean(fitted)),
        "models": [means["model"]["psnr"] for means in found],
    }


def best_fit(damaged: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """PSNR in dB after the cubic curve and the isotropic filter of least squared error.

    damaged, truth: `[H, W]` in [0, 1]. The filter has one gain in each of `BANDS` rings of
    frequencies (a Wiener filter that knows the photo).
    """
    x, y = damaged.astype(np.float64), truth.astype(np.float64)
    x = np.polyval(np.polyfit(x.ravel(), y.ravel(), 3), x)
    height, width = x.shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    ring = np.minimum((radius / radius.max() * BANDS).astype(np.intp), BANDS - 1)
    given, wanted = np.fft.rfft2(x - y.mean()), np.fft.rfft2(y - y.mean())
    shared = np.bincount(ring.ravel(), (wanted * given.conj()).real.ravel(), BANDS)
    power = np.bincount(ring.ravel(), (np.abs(given) ** 2).ravel(), BANDS)
    gain = np.divide(shared, power, out=np.zeros(BANDS), where=power > 0)
    filtered = np.fft.irfft2(given * gain[ring], x.shape) + y.mean()
    light = torch.from_numpy(filtered[None]).clamp(0, 1)
    return psnr(light, torch.from_numpy(y[None]))


def report(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    names = result["checkpoints"]
    lines = [
        "# What restoration does to each kind of damage",
        "",
        f"Mean PSNR of luminance in dB, {result['photos']} photos of 256 x 256 that were not "
        "trained on. Each kind is alone and certain to occur, in its whole range; `light`, "
        "`default` and `heavy` are the mixtures of `pikfix degrade`. The best curve (a cubic) and "
        f"filter (isotropic) are fitted to the truth of each photo. {result['date']}, "
        f"{result['machine']}, torch {result['torch']}.",
        "",
        f"| damage | before | best curve and filter | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 3),
    ]
    for name, row in result["rows"].items():
        before = row["input"]
        if name == "none":  # what a picture scores against itself is a convention
            cells = ["", "", *(f"{value:.2f}" for value in row["models"])]
        else:
            after = (row["best_fit"], *row["models"])
            cells = [f"{before:.2f}", *(f"{value:.2f} ({value - before:+.2f})" for value in after)]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
