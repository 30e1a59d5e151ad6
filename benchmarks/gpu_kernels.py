"""All GPU work for the kernels in one call, on a machine with an NVIDIA GPU.

    python benchmarks/gpu_kernels.py --out benchmarks/results/kernels-gpu [--steps ...]

Steps, each with its own log in the results folder, and a summary with what passed:

- tests: the tests marked ``gpu``, which include the kernels' input classes and tolerances;
- tiles: every entry of this GPU's tile table, and candidates beside it, run at full size, checked
  against float64, then timed; ``tiles-proposed.json`` holds the fastest correct ones;
- benchmark: ``benchmarks/kernels.py --device cuda``;
- profile: a profiler summary of one forward and backward pass.

Only the packages that the kernels import are needed: torch, triton, numpy, and for the tests
pytest. The package is found beside this script where it is not installed.
"""

# Imports wait until the package is importable, and a GPU is known to be there.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Largest relative error of a tile against float64 on its own (rounded) inputs.
_LIMITS = {2: 2e-3, 4: 1e-4}
_GRADIENT_LIMIT = 1e-2


def make_importable() -> None:
    """Put ``pikfix.kernels`` on the path where the package is not installed."""
    try:
        importlib.import_module("pikfix.kernels")
    except ModuleNotFoundError:
        package = Path(tempfile.mkdtemp()) / "pikfix"
        package.mkdir()
        (package / "kernels").symlink_to(ROOT / "kernels")
        sys.path.insert(0, str(package.parent))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(package.parent), os.environ.get("PYTHONPATH", "")) if part
        )


def run_logged(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command with its output in a log; whether it passed, and the log's last line."""
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, check=False, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT
        )
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {
        "passed": done.returncode == 0,
        "seconds": round(time.perf_counter() - start, 1),
        "last_line": lines[-1] if lines else "",
    }


def candidates(tile: Any, capability: int) -> Iterator[Any]:
    """The committed tile first, then its neighbours."""
    seen = set()
    for rows in (tile.rows, 64, 128):
        for columns in (tile.columns, 32, 64, 128):
            for warps, stages in (
                (tile.num_warps, tile.num_stages),
                (4, 2),
                (8, 2),
                (8, 3),
                (4, 3),
            ):
                changes = {"rows": rows, "columns": columns, "num_warps": warps}
                found = dataclasses.replace(tile, **changes, num_stages=stages)
                if found not in seen:
                    seen.add(found)
                    yield found
                if capability < 90 or tile.kernel != "forward" or tile.slice < tile.channels:
                    continue
                changed = dataclasses.replace(found, descriptors=True)
                if changed not in seen:
                    seen.add(changed)
                    yield changed


class TileBench:
    """One tile's problem: inputs at full size and a float64 reference of some of its rows."""

    def __init__(self, tile: Any, positions: int) -> None:
        import torch

        from pikfix.kernels import naive

        self.tile = tile
        torch.manual_seed(0)
        dtype = torch.float16 if tile.bytes == 2 else torch.float32
        self.query, self.key = (
            naive.center_normalize(torch.randn(1, positions, tile.channels, device="cuda")).to(
                dtype
            )
            for _ in range(2)
        )
        self.values = torch.rand(1, positions, tile.width, device="cuda").to(dtype)
        self.rows = torch.arange(0, positions, max(1, positions // 256), device="cuda")
        exact = [t.double() for t in (self.query[:, self.rows], self.key, self.values)]
        self.exact = exact
        self.warped, self.confidence = naive.correlation_warp(*exact, 0.01)
        if tile.kernel == "backward":
            self._reference_gradients()

    def _reference_gradients(self) -> None:
        import torch

        from pikfix.kernels import correlation_warp_triton, naive

        warped, _, self.logsumexp = correlation_warp_triton.forward(
            self.query, self.key, self.values, 0.01, None, wide=True
        )
        self.wide = warped
        # Only the checked rows send a gradient back, so that their float64 twin is complete.
        self.grad = torch.zeros_like(warped)
        chosen = torch.randint(-4, 5, (1, len(self.rows), self.tile.width), device="cuda")
        self.grad[:, self.rows] = chosen.float()
        leaves = [t.requires_grad_() for t in self.exact]
        output = naive.correlation_warp(*leaves, 0.01)[0]
        self.gradients = torch.autograd.grad(output, leaves, chosen.double())

    def call(self, tile: Any) -> tuple[Any, ...]:
        """Run the forward or backward pass with a tile."""
        from pikfix.kernels import correlation_warp_backward_triton, correlation_warp_triton

        if tile.kernel == "forward":
            return correlation_warp_triton.forward(
                self.query, self.key, self.values, 0.01, None, tile=tile
            )
        return correlation_warp_backward_triton.backward(
            self.grad,
            None,
            query=self.query,
            key=self.key,
            values=self.values,
            temperature=0.01,
            key_mask=None,
            warped=self.wide,
            logsumexp=self.logsumexp,
            tile=tile,
        )

    def error(self, tile: Any) -> float:
        """Largest relative error of the outputs; NaN where something was not written."""
        got = self.call(tile)
        if tile.kernel == "forward":
            pairs = [(got[0][:, self.rows], self.warped)]
            highest = (got[1][:, self.rows] - self.confidence).abs().max()
            if not highest <= 5e-4:
                return float("inf")
        else:
            pairs = [(got[0][:, self.rows], self.gradients[0])]
            pairs += list(zip(got[1:], self.gradients[1:], strict=True))
        return max(float((g.double() - w).norm() / w.norm()) for g, w in pairs)


def tune(out: Path, positions: int, seconds: float) -> dict[str, Any]:
    """Check every committed tile and its neighbours, time the correct ones."""
    import torch
    from triton.testing import do_bench

    from pikfix.kernels import tiles

    table = tiles.table_for(torch.device("cuda"))
    rows: list[dict[str, Any]] = []
    wrong_committed = []
    best: dict[str, list[dict[str, Any]]] = {"forward": [], "backward": []}
    for committed in table.tiles:
        bench = TileBench(committed, positions)
        limit = _LIMITS[committed.bytes] if committed.kernel == "forward" else _GRADIENT_LIMIT
        correct = []
        end = time.perf_counter() + seconds / len(table.tiles)
        for tile in candidates(committed, table.capability):
            row = dataclasses.asdict(tile) | {"committed": tile == committed}
            try:
                row["error"] = bench.error(tile)
                if row["error"] <= limit:
                    row["milliseconds"] = do_bench(functools.partial(bench.call, tile), rep=30)
                    correct.append(row)
            except Exception as error:
                row["failed"] = str(error).splitlines()[0][:200]
            if tile == committed and "milliseconds" not in row:
                wrong_committed.append(row)
            rows.append(row)
            if time.perf_counter() > end:
                break
        if correct:
            chosen = min(correct, key=lambda row: row["milliseconds"])
            fields = {field.name for field in dataclasses.fields(tiles.Tile)} - {"kernel"}
            best[committed.kernel].append({k: v for k, v in chosen.items() if k in fields})
    proposed = {
        "gpu": torch.cuda.get_device_name(),
        "capability": table.capability,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "shared_memory": table.shared_memory,
        "tiles": best,
    }
    (out / "tiles.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (out / "tiles-proposed.json").write_text(json.dumps(proposed, indent=1), encoding="utf-8")
    return {
        "passed": not wrong_committed,
        "checked": len(rows),
        "correct": sum("milliseconds" in row for row in rows),
        "wrong_committed": wrong_committed,
    }


def profile(out: Path, positions: int) -> dict[str, Any]:
    """Write a profiler summary of a forward and a backward pass."""
    import torch
    from torch.profiler import ProfilerActivity

    from pikfix.kernels import center_normalize, correlation_warp

    query = torch.randn(1, positions, 256, device="cuda", dtype=torch.float16, requires_grad=True)
    values = torch.rand(1, positions, 64, device="cuda", dtype=torch.float16, requires_grad=True)

    def step() -> None:
        unit = center_normalize(query)
        warped, confidence = correlation_warp(unit, unit, values, 0.01)
        (warped.float().sum() + confidence.sum()).backward()

    step()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    summary = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25)
    (out / "profile.txt").write_text(summary, encoding="utf-8")
    return {"passed": True}


def main() -> None:
    """Run the steps and write ``summary.json``."""
    steps = ("tests", "tiles", "benchmark", "profile")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/kernels-gpu")
    parser.add_argument("--steps", nargs="+", choices=steps, default=list(steps))
    parser.add_argument("--positions", type=int, default=4096, help="for tiles and profile")
    parser.add_argument("--tile-seconds", type=float, default=240)
    options = parser.parse_args()
    make_importable()
    import torch

    if not torch.cuda.is_available():
        parser.exit(1, "no NVIDIA GPU is visible to PyTorch: run this on a machine with one\n")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    benchmark = [python, "benchmarks/kernels.py", "--device", "cuda", "--out", str(out)]
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "tests": lambda: run_logged(
            [python, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels"], out / "tests.log"
        ),
        "tiles": lambda: tune(out, options.positions, options.tile_seconds),
        "benchmark": lambda: run_logged(
            [*benchmark, "--positions", "4096", "16384", "--seconds", "0.2"], out / "benchmark.log"
        ),
        "profile": lambda: profile(out, options.positions),
    }
    summary: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    for step in options.steps:
        try:
            summary[step] = actions[step]()
        except Exception as error:
            summary[step] = {"passed": False, "error": str(error)[:500]}
        (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        sys.stdout.write(f"{step}: {json.dumps(summary[step])[:500]}\n")
        sys.stdout.flush()
    raise SystemExit(0 if all(summary[step]["passed"] for step in options.steps) else 1)


if __name__ == "__main__":
    main()
