"""The GPU campaign's results as Markdown and plots."""

# ruff: noqa: PLC0415 - matplotlib is imported where there is something to draw

from __future__ import annotations

from pathlib import Path
from typing import Any

Result = dict[str, Any]


def write_report(out: Path, state: dict[str, Result]) -> None:
    """Write campaign.md and, where there are figures, the plots beside it.

    A figure appears only if a GPU measured it: what was skipped is listed as skipped.
    """
    machine = state.get("environment", {})
    gpu = machine.get("gpu")
    versions = ", ".join(f"{n} {v}" for n, v in machine.get("versions", {}).items())
    lines = ["# GPU campaign", ""]
    lines.append(
        f"{gpu or 'No NVIDIA GPU: nothing was measured'}, {machine.get('date')}; {versions}."
    )
    lines += ["", "| step | result |", "|---|---|"]
    for name, result in state.items():
        word = "passed" if result["passed"] else f"**{result.get('skipped') or 'failed'}**"
        detail = result.get("error") or (result.get("skipped") if result["passed"] else None)
        lines.append(f"| {name} | {word}{f': {detail}' if detail else ''} |")
    rows = [r for n, s in state.items() if n.startswith("latency-") for r in s.get("rows", ())]
    if gpu and rows:
        lines += _latency(rows)
        _plot(out, rows, gpu)
    served = [s["row"] for n, s in state.items() if n.startswith("serve-") and "row" in s]
    if gpu and served:
        lines += ["", "## Through tritonserver, one photo at a time", ""]
        lines += ["| side | requests | p50 ms | p95 ms | ONNX steps |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['size']} | {r['requests']} | {r['p50_ms']:.1f} | {r['p95_ms']:.1f} | "
            f"on the {'GPU' if r['onnx_on_gpu'] else 'CPU'} |"
            for r in served
        ]
    if gpu and "peak_bytes" in state.get("memory", {}):
        peak = state["memory"]["peak_bytes"] / 2**30
        lines += ["", f"A working size of 1024 x 1024 takes {peak:.2f} GiB."]
    temporary = out / "campaign.md.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(out / "campaign.md")


def _latency(rows: list[Result]) -> list[str]:
    lines = ["", "## Steps with PyTorch, milliseconds per batch (p50)", ""]
    lines.append("| precision | side | batch | restore | similarity | colorize | photos/s | GiB |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        head = f"| {row['precision']} | {row['size']} | {row['batch']} |"
        if "problem" in row:
            lines.append(f"{head} {row['problem']} | | | | |")
            continue
        steps = " | ".join(f"{step['p50']:.2f}" for step in row["milliseconds"].values())
        memory = row["peak_bytes"] / 2**30
        lines.append(f"{head} {steps} | {row['photos_per_second']:.1f} | {memory:.2f} |")
    return lines


def _plot(out: Path, rows: list[Result], gpu: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    measured = [row for row in rows if "photos_per_second" in row]
    for precision, size in dict.fromkeys((row["precision"], row["size"]) for row in measured):
        own = [r for r in measured if (r["precision"], r["size"]) == (precision, size)]
        batches = [row["batch"] for row in own]
        label = f"{precision}, {size} x {size}"
        axes[0].plot(batches, [r["photos_per_second"] for r in own], marker="o", label=label)
        axes[1].plot(batches, [r["peak_bytes"] / 2**30 for r in own], marker="o", label=label)
    for axis, title in zip(axes, ("photos per second", "peak memory, GiB"), strict=True):
        axis.set(xlabel="batch", title=title, xscale="log", yscale="log")
    axes[0].legend(fontsize=7)
    figure.suptitle(gpu)
    figure.tight_layout()
    figure.savefig(out / "campaign.png", dpi=120)
    plt.close(figure)
