"""The campaign's kernels: the warp against its peers, the other operators, candidate tiles."""

# Triton and the peers are imported where they are used: a rehearsal blocks some.
# ruff: noqa: PLC0415

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_rows import Plan, Row, Rows
from gpu_timing import timed

_CHECKED_ROWS = 256
_LIMITS = {2: 2e-3, 4: 1e-4}
"""Largest relative error of a tile against float64 on its own (rounded) inputs, by bytes."""
_GRADIENT_LIMIT = 1e-2


def kernels(plan: Plan, rows: Rows) -> None:
    """Ceilings, then every problem: verified against float64, then timed."""
    import kernels as benchmark

    torch.set_grad_enabled(False)
    limits: dict[str, float] = {}

    def ceilings() -> Row:
        limits.update(benchmark.ceilings(plan.device, plan.seconds))
        return dict(limits)

    rows.measure("ceilings", ceilings)
    for warp in plan.warps:
        _problem(plan, rows, warp)
    with torch.enable_grad():
        rows.measure(
            f"operations, N {plan.operations}",
            lambda: {
                "operations": benchmark.operations(plan.operations, plan.device, plan.seconds)
            },
        )


def _problem(plan: Plan, rows: Rows, warp: tuple[int, int, int, int]) -> None:
    import kernels_peers

    import kernels as benchmark

    channels, width, queries, keys = warp
    label = f"C {channels}, D {width}, N {queries}, M {keys}"
    made: list[Any] = []

    def problem() -> Any:
        """The problem and its float64 reference, made once and only if a row lacks."""
        if not made:
            try:
                whole = benchmark.make_problem(channels, width, queries, "photo", plan.device)
            except ImportError:
                whole = benchmark.make_problem(channels, width, queries, "random", plan.device)
            cut = {"key": whole.key[:, :keys], "values": whole.values[:, :keys]}
            cut = {name: tensor.contiguous() for name, tensor in cut.items()}
            found = dataclasses.replace(whole, **cut)
            made.append((found, benchmark.Reference(found, _CHECKED_ROWS)))
        return made[0]

    names: list[str] = [name for name in _names(plan) if not rows.has(f"{label}: {name}")]
    if not names:
        return
    for family in kernels_peers.peers(problem()[0], 2):
        try:
            listed = list(family())
        except (RuntimeError, ImportError, ValueError):
            continue  # it is listed as missing below, if it was asked for
        for peer in listed:
            name = f"{peer.name} {peer.dtype}"
            if name not in names:
                continue
            names.remove(name)
            rows.measure(
                f"{label}: {name}",
                lambda peer=peer: _figures(plan, peer, *problem(), warp=warp),  # type: ignore[misc]
            )
    for name in names:
        rows.measure(f"{label}: {name}", _missing)


def _missing() -> Row:
    raise ImportError("not on this machine")


def _names(plan: Plan) -> tuple[str, ...]:
    """In the order of what they are worth: the campaign may end early."""
    own = "pikfix correlation_warp"
    if not plan.on_gpu:
        return (f"{own} fp32", f"{own} bf16", "matmul, softmax, matmul fp32")
    return (
        f"{own} fp16",
        "FlexAttention fp16",
        "SDPA flash, padded, max pass fp16",
        "SDPA cudnn, padded, max pass fp16",
        "SDPA flash, padded fp16",
        "SDPA cudnn, padded fp16",
        f"{own} bf16",
        "matmul, softmax, matmul fp32",
    )


def _figures(
    plan: Plan, peer: Any, problem: Any, reference: Any, *, warp: tuple[int, int, int, int]
) -> Row:
    channels, width, queries, keys = warp
    error = reference.error(peer)
    row: Row = {
        "peer": peer.name,
        "dtype": peer.dtype,
        "maximum": peer.maximum,
        "channels": channels,
        "width": width,
        "queries": queries,
        "keys": keys,
        "features": problem.features,
        "error": error,
    }
    if not error <= peer.tolerance:
        raise ArithmeticError(f"error {error:.2g} above {peer.tolerance:.2g}: not timed")
    row["milliseconds"] = timed(peer.run, plan.device, plan.seconds)
    operations = 2 * (channels + width) * queries * keys
    row["tflops"] = operations / row["milliseconds"]["median"] / 1e9
    return row


def candidates(tile: Any, capability: int) -> Iterator[Any]:
    """The committed tile first, then its neighbours."""
    seen = set()
    shapes = [(tile.num_warps, tile.num_stages), (8, 2), (8, 3), (4, 3), (4, 2)]
    for rows in (tile.rows, 128, 64):
        for columns in (tile.columns, 64, 128, 32):
            for warps, stages in shapes:
                changes = {"rows": rows, "columns": columns, "num_warps": warps}
                found = [dataclasses.replace(tile, **changes, num_stages=stages)]
                if capability >= 90 and tile.kernel == "forward" and tile.slice >= tile.channels:
                    found.append(dataclasses.replace(found[0], descriptors=True))
                for candidate in found:
                    if candidate not in seen:
                        seen.add(candidate)
                        yield candidate


def candidate_tiles(plan: Plan, rows: Rows) -> None:
    """The forward tiles of the problems' widths, and the neighbours of each."""
    from pikfix.kernels import tiles

    torch.set_grad_enabled(False)
    table = tiles.table_for(torch.device(plan.device))
    for channels, width, queries, keys in plan.warps:
        committed = table.find("forward", channels, width, 2 if plan.on_gpu else 4)
        bench = functools.cache(functools.partial(TileBench, plan, channels, width, queries, keys))
        label = f"forward C {channels}, D {width}"
        facts = {"gpu_table": table.gpu, "queries": queries, "keys": keys}
        for number, tile in enumerate(candidates(committed, table.capability)):
            if number >= plan.tiles:
                break
            words = f"{tile.rows} x {tile.columns}, {tile.num_warps} warps"
            words += f", {tile.num_stages} stages"
            words += ", descriptors" if tile.descriptors else ""
            facts |= {"tile": dataclasses.asdict(tile), "committed": tile == committed}
            rows.measure(
                f"{label}: {words}",
                lambda made=bench, t=tile, f=dict(facts): made().figures(t) | f,  # type: ignore[misc]
            )


class TileBench:
    """One problem for all candidates: inputs, and a float64 reference of some of its rows."""

    def __init__(self, plan: Plan, channels: int, width: int, queries: int, keys: int) -> None:
        from pikfix.kernels import naive

        torch.manual_seed(0)
        dtype = torch.float16 if plan.on_gpu else torch.float32
        self._plan = plan
        self.query, self.key = (
            naive.center_normalize(torch.randn(1, n, channels, device=plan.device)).to(dtype)
            for n in (queries, keys)
        )
        self.values = torch.rand(1, keys, width, device=plan.device).to(dtype)
        step = max(1, queries // _CHECKED_ROWS)
        self.rows = torch.arange(0, queries, step, device=plan.device)
        exact = [t.double() for t in (self.query[:, self.rows], self.key, self.values)]
        self.warped, self.confidence = naive.correlation_warp(*exact, 0.01)

    def _call(self, tile: Any) -> Callable[[], tuple[Any, ...]]:
        from pikfix.kernels import correlation_warp_triton

        return lambda: correlation_warp_triton.forward(
            self.query, self.key, self.values, 0.01, None, tile=tile
        )

    def figures(self, tile: Any) -> Row:
        """Error and time of a tile; ArithmeticError if it is wrong."""
        call = self._call(tile)
        warped, confidence, _ = call()
        got = warped[:, self.rows].double()
        error = float((got - self.warped).norm() / self.warped.norm())
        highest = float((confidence[:, self.rows].double() - self.confidence).abs().max())
        if not (error <= _LIMITS[self.query.element_size()] and highest <= 5e-4):
            raise ArithmeticError(f"error {error:.2g}, of the maximum {highest:.2g}: not timed")
        return {"error": error, "milliseconds": timed(call, self._plan.device, 0.05)}
