"""A short ablation: every switch of the networks, trained for the same minutes and measured.

    python benchmarks/ablation.py --photos DIR --queries DIR --minutes 4 -o NAME

The rows are those of the paper's tables 4 to 6 (Pik-Fix, Xu et al., WACV 2023). Every variant
starts from random weights and goes through `pikfix train` and `pikfix evaluate`, as anyone would
run it; restoration is measured by the protocol restore, colours by sibling. Writes NAME.json and
NAME.md. Minutes of this length order the variants by how fast they learn, not by how good they get.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import processor, write_results

COLOR = ("--train", "similarity,colorization", "--color-input", "clean", "--loss", "chroma=1")
RESTORATION = ("--train", "restoration", "--loss", "chroma=0")


@dataclass(frozen=True)
class Variant:
    """A row: its name, the paper's table, what is trained and which switches differ."""

    name: str
    table: int
    words: tuple[str, ...]
    switches: tuple[str, ...] = ()

    @property
    def protocol(self) -> str:
        """What it is measured by."""
        return "restore" if self.words is RESTORATION else "sibling"


VARIANTS = (
    Variant("multi-level restoration", 4, RESTORATION),
    Variant("single-level restoration", 4, RESTORATION, ("restoration_levels=1",)),
    Variant("the whole colour path", 5, COLOR),
    Variant("similarity at one scale", 5, COLOR, ("similarity=single",)),
    Variant("no similarity", 5, COLOR, ("similarity=none",)),
    Variant("fusion of ab at the input", 6, COLOR, ("fusion=input_ab",)),
    Variant("fusion of ab at four scales", 6, COLOR, ("fusion=multi_scale_ab",)),
    Variant("fusion of one histogram", 6, COLOR, ("fusion=single_scale_histogram",)),
)


def main() -> None:
    """Train and measure every variant; write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="to train on")
    parser.add_argument("--queries", type=Path, required=True, help="to measure with")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training for each variant")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int, default=40, help="queries")
    parser.add_argument("--neighbours", type=Path, help="table of a run on the same photos")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("-o", "--out", type=Path, required=True, help="without its suffix")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pikfix-ablation-") as scratch,
        ThreadPoolExecutor(args.at_once) as pool,
    ):
        rows = list(pool.map(lambda v: measure(v, Path(scratch), args), VARIANTS))
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "minutes": args.minutes,
        "crop": args.crop,
        "batch": args.batch,
        "threads": 1,
        "at_once": args.at_once,
        "queries": args.limit,
        "rows": rows,
    }
    write_results(args.out, result, report(result))
    print(report(result))


def measure(variant: Variant, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one variant on one thread."""
    run = scratch / variant.name.replace(" ", "-")
    words = ["train", "--photos", args.photos, "-o", run, "--minutes", args.minutes]
    words += ["--threads", 1, "--batch", args.batch, "--crop", args.crop, *variant.words]
    words += ["--loss", "perceptual=0", "--loss", "adversarial=0", "--loss", "distillation=0"]
    words += ["--optimizer", "temperature_start=0.03", "--ablation", "temperature=0.03"]
    words += ["--optimizer", "ema=0.97", "--lr", 1e-3]
    for switch in variant.switches:
        words += ["--ablation", switch]
    if args.neighbours:
        words += ["--neighbours", args.neighbours]
    pikfix(*words)
    figures = run / "figures.json"
    pikfix(
        *("evaluate", run / "model.safetensors", "--photos", args.queries),
        *("--protocol", variant.protocol, "--limit", args.limit, "--json", figures),
    )
    measured = json.loads(figures.read_text())
    row = {"name": variant.name, "table": variant.table, "protocol": variant.protocol}
    row["steps"] = steps(run)
    for system in ("model", "input", "grey"):
        if system in measured:
            row[system] = measured[system]
    print(f"{variant.name}: {measured['model']}", file=sys.stderr, flush=True)
    return row


def pikfix(*words: object) -> None:
    """Run a command; its output is shown when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pikfix.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def steps(run: Path) -> int:
    """How far a run got."""
    return int((run / "training.csv").read_text().splitlines()[-1].partition(",")[0])


def report(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# A short ablation",
        "",
        f"Every variant from random weights, {result['minutes']:g} minutes on one thread, crops of "
        f"{result['crop']} pixels in batches of {result['batch']}, measured on "
        f"{result['queries']} photos of 256 x 256. {result['date']}, {result['machine']}, "
        f"{_runs(result['at_once'])}.",
        "",
        "| table | variant | protocol | steps | PSNR | SSIM | before: PSNR | SSIM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        before = row.get("input") or row["grey"]
        lines.append(
            f"| {row['table']} | {row['name']} | {row['protocol']} | {row['steps']} "
            f"| {row['model']['psnr']:.2f} | {row['model']['ssim']:.4f} "
            f"| {before['psnr']:.2f} | {before['ssim']:.4f} |"
        )
    lines += ["", "Before is the damaged input (restore) or the grey photo (sibling).", ""]
    return "\n".join(lines)


def _runs(at_once: int) -> str:
    return "one run after the other" if at_once == 1 else f"{at_once} runs at once"


if __name__ == "__main__":
    main()
