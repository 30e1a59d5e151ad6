"""The campaign's rows as JSON, Markdown and plots; a figure that has no row does not appear."""

# ruff: noqa: PLC0415 - matplotlib is imported where there is something to draw

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu_rows import Row, read_rows

_DISPATCHED, _GLUON = "pikfix correlation_warp", "pikfix, Gluon"
_PEERS = {
    "FlexAttention": "FlexAttention",
    "SDPA flash, padded, max pass": "flash, max pass",
    "SDPA cudnn, padded, max pass": "cuDNN, max pass",
}


_PATHS = ("interpreter", "server")
"""Fields that say where things lay on that machine, of no use on another."""
_TOP_KERNELS, _NAME_LENGTH = 5, 72


def write_report(rows_file: Path, folder: Path, name: str, notes: Sequence[str] = ()) -> None:
    """Write `gpu-NAME.json`, `.md` and `.png`; notes are what the rows do not say of themselves.

    Raises:
        ValueError: the rows do not say where they were measured, or on a CPU.
    """
    rows = [
        {name: value for name, value in row.items() if name not in _PATHS}
        for row in current(read_rows(rows_file))
    ]
    machine = next((row for row in rows if row["key"] == "machine"), None)
    if machine is None:
        raise ValueError(f"{rows_file} does not say where it was measured: run the section probe")
    if machine["rehearsal"]:
        raise ValueError(f"{rows_file} is a rehearsal on a CPU: it has no figure of a GPU")
    if notes:
        rows.append({"section": "report", "key": "notes", "notes": list(notes)})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"gpu-{name}.json", json.dumps(rows, indent=1) + "\n")
    _write(folder / f"gpu-{name}.md", markdown(rows))
    plot(rows, folder / f"gpu-{name}.png")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def current(rows: Iterable[Row]) -> list[Row]:
    """One row per figure: a success if there is one, else the last failure."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["section"], row["key"])
        if key not in found or "failed" in found[key]:
            found[key] = row
    return list(found.values())


def _of(rows: Iterable[Row], section: str, field: str) -> list[Row]:
    return [row for row in rows if row["section"] == section and field in row]


def markdown(rows: list[Row]) -> str:
    """The report; `rows` has one row per figure and says what the machine is."""
    machine = next(row for row in rows if row["key"] == "machine")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"# {machine['device']}", ""]
    driver = f"driver {machine['driver']}, " if machine.get("driver") else ""
    cudnn = f"cuDNN {machine['cudnn']}, " if machine.get("cudnn") else ""
    lines.append(
        f"{machine['at'][:10]}; {machine['cores']} cores; {driver}{cudnn}{versions}. Times are "
        "medians of replayed CUDA graphs; what could not be recorded is marked."
    )
    for row in _of(rows, "report", "notes"):
        lines += ["", *(f"- {note}" for note in row["notes"])]
    parts = (_kernels, _tiles, _parity, _networks, _network_kernels, _served, _steps, _packages)
    for part in (*parts, _failures):
        lines += part(rows)
    return "\n".join(lines) + "\n"


def _table(title: str, head: str, rows: list[str], *notes: str) -> list[str]:
    if not rows:
        return []
    columns = head.count("|") - 1
    lines = ["", f"## {title}", ""]
    if notes:
        lines += [*notes, ""]
    return [*lines, head, "|" + "---|" * columns, *rows]


def _kernels(rows: list[Row]) -> list[str]:
    measured = warps(rows)
    ceilings = next((row for row in rows if row["key"] == "ceilings" and "copy" in row), None)
    notes = []
    if ceilings:
        products = ", ".join(
            f"{n} product {ceilings[n]:.0f} TFLOP/s" for n in ("fp16", "bf16") if n in ceilings
        )
        notes.append(f"Ceilings of this run: {products}, copy {ceilings['copy'] / 1000:.2f} TB/s.")
    if any(row["peer"] == _GLUON for row in measured):
        notes.append(
            "The Gluon form's figures are those of its fastest tile in the section gluon: random "
            "features (and their errors), where the others have a photo's."
        )
    lines = []
    for row in measured:
        share = ""
        if ceilings and row["dtype"] in ceilings:
            share = f"{row['tflops'] / ceilings[row['dtype']]:.0%}"
        times = row["milliseconds"]
        mark = "" if times["graph"] else " (no graph)"
        lines.append(
            f"| {row['channels']}, {row['width']} | {row['queries']} x {row['keys']} | "
            f"{row['peer']}{mark} | {row['dtype']} | {times['median']:.3f} | {row['tflops']:.0f} | "
            f"{share} | {row['error']:.1e} |"
        )
    head = "| C, D | N x M | implementation | dtype | ms | TFLOP/s | of product | error |"
    found = _table("Correlation warp", head, lines, *notes)
    return found + _table(
        "Times the peer takes, in times of ours",
        "| C, D | N x M | ours | " + " | ".join(_PEERS.values()) + " |",
        ratios(measured),
        "The peers that give the maximum, too, in float16.",
    )


def warps(rows: list[Row]) -> list[Row]:
    """Rows of the warp by problem: peers, what is dispatched, and the fastest of the Gluon form."""
    found = _of(rows, "kernels", "tflops")
    fastest: dict[tuple[int, ...], Row] = {}
    for row in _of(rows, "gluon", "milliseconds"):
        channels, width = map(int, re.findall(r"[CD] (\d+)", row["key"])[:2])
        problem = (channels, width, row["queries"], row["keys"])
        median = row["milliseconds"]["median"]
        if problem not in fastest or median < fastest[problem]["milliseconds"]["median"]:
            fastest[problem] = {
                **dict(zip(("channels", "width", "queries", "keys"), problem, strict=True)),
                "peer": _GLUON,
                "dtype": "fp16",  # what candidates are timed in on a GPU
                "milliseconds": row["milliseconds"],
                "tflops": 2 * (channels + width) * row["queries"] * row["keys"] / median / 1e9,
                "error": row["error"],
            }
    problems = dict.fromkeys(map(_problem, found)) | fastest
    return [row for p in problems for row in (*found, *fastest.values()) if _problem(row) == p]


def _problem(row: Row) -> tuple[int, ...]:
    return (row["channels"], row["width"], row["queries"], row["keys"])


def ratios(measured: list[Row]) -> list[str]:
    """A line per problem: the faster of our forms, and peers in times of it."""
    lines = []
    for problem in dict.fromkeys(map(_problem, measured)):
        times = {
            r["peer"]: r["milliseconds"]["median"]
            for r in measured
            if r["dtype"] == "fp16" and _problem(r) == problem
        }
        forms = [form for form in (_DISPATCHED, _GLUON) if form in times]
        if not forms:
            continue
        own = min(forms, key=lambda form: times[form])
        cells = [f"{times[peer] / times[own]:.2f}" if peer in times else "-" for peer in _PEERS]
        channels, width, queries, keys = problem
        lines.append(f"| {channels}, {width} | {queries} x {keys} | {own} | {' | '.join(cells)} |")
    return lines


def _tiles(rows: list[Row]) -> list[str]:
    best: dict[str, Row] = {}
    committed: dict[str, Row] = {}
    for row in [*_of(rows, "tiles", "tile"), *_of(rows, "gluon", "tile")]:
        problem = row["key"].split(":")[0]
        if row["committed"]:
            committed[problem] = row
        held = best.get(problem)
        if held is None or row["milliseconds"]["median"] < held["milliseconds"]["median"]:
            best[problem] = row
    lines = []
    for problem, row in best.items():
        own = committed.get(problem)
        took = f"{own['milliseconds']['median']:.3f}" if own else "-"
        lines.append(
            f"| {problem} | {took} | {row['key'].split(': ')[1]} | "
            f"{row['milliseconds']['median']:.3f} |"
        )
    return _table("Tiles", "| problem | committed, ms | fastest correct one | ms |", lines)


def _parity(rows: list[Row]) -> list[str]:
    lines = [
        f"| {r['network']} | {r['step']} | {r['precision']} | {_decibels(r['psnr'])} | "
        f"{r['max_abs']:.1e} | {r['worst_tile']:.1e} | {r['against']} |"
        for r in _of(rows, "parity", "max_abs")
    ]
    head = "| network | step | precision | PSNR | largest | worst tile | against |"
    return _table("Parity of the networks", head, lines)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _networks(rows: list[Row]) -> list[str]:
    lines = []
    for row in _of(rows, "networks", "photos_per_second"):
        shares = " | ".join(f"{share:.0%}" for share in row["share"].values())
        lines.append(
            f"| {row['network']} | {row['side']} | {row['batch']} | "
            f"{row['photos_per_second']:.1f} | {shares} | {_gibibytes(row['peak_bytes'])} |"
        )
    steps = dict.fromkeys(s for r in _of(rows, "networks", "share") for s in r["share"])
    head = f"| network | side | batch | photos/s | {' | '.join(steps)} | peak memory |"
    found = _table(
        "Networks alone",
        head,
        lines,
        "Each step a CUDA graph in float16, one reference of at most 256 x 256.",
    )
    for row in _of(rows, "networks", "working_side"):
        if row["peak_bytes"] is not None:
            fits = "under" if row["peak_bytes"] < row["limit_bytes"] else "over"
            side = row["working_side"]
            found += [
                "",
                f"`{row['network']}`, working size {side} x {side}: "
                f"{_gibibytes(row['peak_bytes'])}, {fits} {_gibibytes(row['limit_bytes'])}.",
            ]
    return found


def _network_kernels(rows: list[Row]) -> list[str]:
    lines, problems = [], {}
    for row in _of(rows, "networks", "kernels"):
        # "kernels of NETWORK PROBLEM, STEP"
        network, problem = row["key"].removeprefix("kernels of ").split(" ", 1)
        problem, step = problem.rsplit(", ", 1)
        problems[problem] = None
        for kernel in row["kernels"][:_TOP_KERNELS]:
            share = kernel["milliseconds"] / row["all_milliseconds"]
            lines.append(
                f"| {network} | {step} | `{short_name(kernel['name'])}` | {kernel['calls']} | "
                f"{kernel['milliseconds']:.2f} | {share:.0%} |"
            )
    head = "| network | step | kernel | calls | ms | of the step |"
    note = f"The first {_TOP_KERNELS} of each step, outside of a graph: {'; '.join(problems)}."
    return _table("Kernels of the networks", head, lines, note)


def short_name(kernel: str) -> str:
    """The name of a GPU's kernel without what many have in common, for a line of a table."""
    for common in ("void ", "at::native::", "(anonymous namespace)::", "c10::"):
        kernel = kernel.replace(common, "")
    kernel = re.sub(r"_f16f16_\w*_nhwc(?=_)", "", kernel)  # types and layouts of convolutions
    return kernel.replace("|", "/")[:_NAME_LENGTH].rstrip()


def _gibibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**30:.2f} GiB"


def _loads(rows: list[Row]) -> list[Row]:
    """What was asked of the server, less what only warmed it."""
    return [row for row in _of(rows, "serve", "p50_ms") if "warming" not in row]


def _served(rows: list[Row]) -> list[str]:
    lines = []
    for row in _loads(rows):
        load = (
            f"{row['clients']} at a time"
            if "clients" in row
            else f"{row['offered_per_second']:.0f} a second, at random"
        )
        lines.append(
            f"| {row['network']} | {row['side']} | {load} | {row['photos_per_second']:.1f} | "
            f"{row['p50_ms']:.0f} | {row['p95_ms']:.0f} | {row['refused']} of "
            f"{row['refused'] + row['photos']} |"
        )
    head = "| network | side | load | photos/s | p50 ms | p95 ms | refused |"
    return _table("Files through the embedded server", head, lines)


def _steps(rows: list[Row]) -> list[str]:
    """Where a photo's time goes, at the largest concurrency of each network."""
    busiest: dict[str, Row] = {}
    for row in _loads(rows):
        if "steps" in row:
            held = busiest.setdefault(row["network"], row)
            busiest[row["network"]] = max(held, row, key=lambda r: r["clients"])
    machine = next(row for row in rows if row["key"] == "machine")
    notes, lines = [], []
    for network, row in busiest.items():
        notes.append(
            f"`{network}`, {row['clients']} at a time: {row['busy_cores']:.1f} of "
            f"{machine['cores']} cores busy."
        )
        for step in sorted(filter(_is_step, row["steps"]), key=_position):
            own = row["steps"][step]
            phases = ("queue", "compute_input", "compute_infer", "compute_output")
            times = " | ".join(f"{own[f'{phase}_ms']:.1f}" for phase in phases)
            lines.append(f"| {network} | {step} | {own['requests'] / own['runs']:.1f} | {times} |")
    head = "| network | step | photos a run | queue | input | inference | output |"
    return _table("Milliseconds of a photo in each step of the server", head, lines, *notes)


def _is_step(model: str) -> bool:
    """Whether it is none of the ensembles, whose times are those of their steps."""
    return not model.startswith("pikfix")


def _position(step: str) -> int:
    """Of a step on a photo's way through the server."""
    from pikfix.systems.registry import system_of

    way = ("decode_photo", *system_of("pikfix").step_names, "encode_photo")
    return way.index(step) if step in way else len(way)


def _packages(rows: list[Row]) -> list[str]:
    compiled = {r["key"].split()[-1]: r for r in _of(rows, "compile", "compile_seconds")}
    lines = []
    for row in _of(rows, "packages", "max_abs"):
        made = compiled.get(row["key"])
        seconds = f"{made['compile_seconds']:.0f}" if made else "-"
        lines.append(
            f"| {row['key']} | {seconds} | {row['load_seconds']:.1f} | "
            f"{row['milliseconds']['median']:.2f} | {row['max_abs']:.1e} |"
        )
    head = "| sub-net | compiled in s | loaded in s | ms | largest error |"
    return _table("AOTInductor packages, in a process without pikfix", head, lines)


def _failures(rows: list[Row]) -> list[str]:
    lines = [
        f"| {row['section']} | {row['key']} | {row['failed'].replace('|', '/')} |"
        for row in rows
        if "failed" in row
    ]
    return _table("Not measured", "| section | figure | why |", lines)


def plot(rows: list[Row], path: Path) -> None:
    """The warp's times per problem, and photos per second by batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    machine = next(row for row in rows if row["key"] == "machine")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    _bars(left, [r for r in warps(rows) if r["dtype"] == "fp16"])
    speeds = _of(rows, "networks", "photos_per_second")
    for network, side in dict.fromkeys((r["network"], r["side"]) for r in speeds):
        own = sorted(
            (r["batch"], r["photos_per_second"])
            for r in speeds
            if (r["network"], r["side"]) == (network, side)
        )
        right.plot(*zip(*own, strict=True), marker="o", label=f"{network}, {side} x {side}")
    right.set(xlabel="batch", title="networks alone, photos per second")
    if speeds:
        batches = sorted({r["batch"] for r in speeds})
        right.set_xscale("log", base=2)
        right.set_xticks(batches, map(str, batches))
        right.set_ylim(bottom=0)
        right.legend(fontsize=7)
    figure.suptitle(f"{machine['device']}, {machine['at'][:10]}")
    figure.tight_layout()
    temporary = path.with_name(f"{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)


def _bars(axis: Any, measured: list[Row]) -> None:
    names = [
        f"{r['peer']} ({r['channels']}, {r['width']}), {r['queries']} x {r['keys']}"
        for r in measured
    ]
    colours = ["C1" if r["peer"].startswith("pikfix") else "C0" for r in measured]
    axis.barh(names, [r["tflops"] for r in measured], color=colours)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=6)
    axis.set(title="correlation warp, float16, TFLOP/s asked for")
