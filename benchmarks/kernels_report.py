"""Write the kernel benchmark's result as JSON, Markdown and a plot."""

# A library is imported where it is used: not every machine has every one.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _best(rows: Iterable[dict[str, Any]]) -> float | None:
    return min((row["milliseconds"]["best"] for row in rows if "milliseconds" in row), default=None)


def ratios(result: dict[str, Any]) -> list[str]:
    """Own times against the peers of the same problem, as sentences with their figures."""
    lines = []
    problems = dict.fromkeys((row["problem"], row["positions"]) for row in result["warp"])
    for problem, positions in problems:
        rows = [r for r in result["warp"] if (r["problem"], r["positions"]) == (problem, positions)]
        peers = {
            "ORT MatMul-Softmax-MatMul": [r for r in rows if r["peer"].startswith("ORT MatMul")],
            "padded SDPA with its max pass": [
                r for r in rows if r["peer"].startswith("SDPA") and r["maximum"]
            ],
            "FlexAttention": [r for r in rows if r["peer"] == "FlexAttention"],
        }
        own = {
            "correlation_warp": [r for r in rows if r["peer"] == "pikfix correlation_warp"],
        }
        for name, mine in own.items():
            for dtype in sorted({row["dtype"] for row in mine}):
                time = _best(r for r in mine if r["dtype"] == dtype)
                for other, theirs in peers.items():
                    same = [r for r in theirs if r["dtype"] in (dtype, "fp32")]
                    reference = _best(r for r in same if r["dtype"] == dtype) or _best(same)
                    if time and reference:
                        lines.append(
                            f"| {problem} | {positions} | {name} {dtype} | {other} | "
                            f"{reference / time:.2f} |"
                        )
    return lines


def markdown(result: dict[str, Any]) -> str:
    """Return the report."""
    machine = result["environment"]
    limits = result["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Kernel benchmark",
        "",
        f"{machine['device']}, {machine['threads']} threads, load {machine['load_average']:.1f} at "
        f"the end, {machine['date']}; {versions}. Temperature {machine['temperature']}, "
        f"histogram sigma {machine['sigma']}, batch 1.",
        "",
        "Ceilings of this run: "
        + ", ".join(f"{n} product {v:.3f} TFLOP/s" for n, v in limits.items() if n != "copy")
        + f", copy {limits['copy']:.1f} GB/s.",
        "",
        "Times are the best and the median of repeated calls, in milliseconds. TFLOP/s count what "
        "was asked for, 2(C + D) per pair of positions; the executed FLOPs per pair show padding. "
        "Error: relative Frobenius norm against float64 on unrounded inputs.",
        "",
        "| C, D, features | N | implementation | dtype | best | median | FLOP/pair | executed | "
        "TFLOP/s | of product | of copy | peak MB | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["warp"]:
        head = f"| {row['problem']} | {row['positions']} | {row['peer']} | {row['dtype']} | "
        if "failed" in row:
            lines.append(head + f"not timed: {row['failed']} |  |  |  |  |  |  |  |  |")
            continue
        times = row["milliseconds"]
        lines.append(
            head + f"{times['best']:.2f} | {times['median']:.2f} | {row['flops_per_pair']} | "
            f"{row['executed_flops_per_pair']} | {row['tflops']:.3f} | {row['matmul_share']:.0%} | "
            f"{row['copy_share']:.1%} | {row['peak_megabytes']:.0f} | {row['error']:.1e} |"
        )
    lines += ["", "## Times the peer takes, in times of ours", ""]
    lines += [
        "Best against best; a peer of the same dtype where there is one, else its float32 one.",
        "",
        "| C, D, features | N | ours | peer | ratio |",
        "|---|---|---|---|---|",
        *ratios(result),
        "",
        "## Other operations",
        "",
        "| operation | N | best | median | peak MB |",
        "|---|---|---|---|---|",
    ]
    for row in result["operations"]:
        times = row["milliseconds"]
        lines.append(
            f"| {row['operation']} | {row['positions']} | {times['best']:.2f} | "
            f"{times['median']:.2f} | {row['peak_megabytes']:.0f} |"
        )
    if result["could_not_run"]:
        lines += ["", "## Could not run", ""]
        lines += [f"- {line}" for line in result["could_not_run"]]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Best times per problem, one bar per implementation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result["warp"] if "milliseconds" in row]
    problems = list(dict.fromkeys((row["problem"], row["positions"]) for row in rows))
    columns = 2
    count = -(-len(problems) // columns)
    figure, axes = pyplot.subplots(count, columns, figsize=(14, 3.4 * count), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.remove()
    for axis, (problem, positions) in zip(axes.flat, problems, strict=False):
        chosen = [r for r in rows if (r["problem"], r["positions"]) == (problem, positions)]
        names = [f"{r['peer']} {r['dtype']}" for r in chosen]
        colours = ["C1" if r["peer"].startswith("pikfix") else "C0" for r in chosen]
        bars = axis.barh(names, [r["milliseconds"]["best"] for r in chosen], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(f"(C, D) = ({problem}), N = {positions}", fontsize=9)
        axis.set_xlabel("milliseconds, best", fontsize=8)
    machine = result["environment"]
    figure.suptitle(
        f"Correlation warp: {machine['device']}, {machine['threads']} threads, {machine['date']}",
        fontsize=10,
    )
    figure.tight_layout()
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    temporary.replace(path)


def write_report(result: dict[str, Any], folder: Path, device: str) -> None:
    """Write ``kernels-DEVICE.json``, ``.md`` and ``.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"kernels-{device}.json", json.dumps(result, indent=1) + "\n")
    _write(folder / f"kernels-{device}.md", markdown(result))
    plot(result, folder / f"kernels-{device}.png")
