"""The campaign's kernels: the warp against its peers, the other operators, candidate tiles."""

# Triton and the peers are imported where they are used: a rehearsal blocks some.
# ruff: noqa: PLC0415

from __future__ import annotations

import dataclasses
import functools
import itertools
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
        # A CPU without instructions for bfloat16 would rehearse for minutes.
        side = None if plan.on_gpu else 256
        limits.update(benchmark.ceilings(plan.device, plan.seconds, side))
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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to compute the forward pass: a tile, and whether the Gluon form takes it."""

    tile: Any
    gluon: bool = False

    @property
    def words(self) -> str:
        """What a row calls it."""
        tile = self.tile
        found = f"{tile.rows} x {tile.columns}, {tile.num_stages} stages"
        if self.gluon:
            return f"{found}, Gluon"
        return f"{found}, {tile.num_warps} warps{', descriptors' if tile.descriptors else ''}"


def candidates(tile: Any, capability: int) -> Iterator[Candidate]:
    """The committed tile first, then other forms, then the tile's neighbours."""
    seen = set()
    for candidate in _candidates(tile, capability):
        if candidate not in seen:
            seen.add(candidate)
            yield candidate


def gluon_candidates(tile: Any, capability: int) -> Iterator[Candidate]:
    """The Gluon form, for Hopper and widths whose sums fit into registers."""
    if capability != 90 or tile.bytes != 2 or tile.channels > 256 or tile.width > 128:
        return
    box = 2 * (tile.channels + tile.width)
    for columns in (64, 128):
        # The rest of the 227 KiB is for the queries on their way into registers.
        most = min(4, (200 * 1024) // (box * columns))
        for stages in range(2, most + 1):
            changes = {"rows": 128, "columns": columns, "num_stages": stages, "num_warps": 8}
            yield Candidate(dataclasses.replace(tile, **changes), gluon=True)


def _candidates(tile: Any, capability: int) -> Iterator[Candidate]:
    yield Candidate(tile)
    shapes = [(tile.num_warps, tile.num_stages), (8, 2), (8, 3), (4, 3), (4, 2)]
    for rows in (tile.rows, 128, 64):
        for columns in (tile.columns, 64, 128, 32):
            for warps, stages in shapes:
                changes = {"rows": rows, "columns": columns, "num_warps": warps}
                found = dataclasses.replace(tile, **changes, num_stages=stages)
                yield Candidate(found)
                if capability >= 90 and tile.slice >= tile.channels:
                    yield Candidate(dataclasses.replace(found, descriptors=True))


def candidate_tiles(plan: Plan, rows: Rows) -> None:
    """The forward tiles of the problems' widths, and the neighbours of each."""
    _compare(plan, rows, candidates)


def gluon_tiles(plan: Plan, rows: Rows) -> None:
    """The Gluon form: a section of its own, since a wrong barrier would hang it."""
    if plan.on_gpu:  # nothing else knows them
        _compare(plan, rows, gluon_candidates)


def _compare(plan: Plan, rows: Rows, listed: Callable[[Any, int], Iterator[Candidate]]) -> None:
    from pikfix.kernels import tiles

    torch.set_grad_enabled(False)
    table = tiles.table_for(torch.device(plan.device))
    for channels, width, queries, keys in plan.warps:
        committed = table.find("forward", channels, width, 2 if plan.on_gpu else 4)
        bench = functools.cache(functools.partial(TileBench, plan, channels, width, queries, keys))
        label = f"forward C {channels}, D {width}"
        facts = {"gpu_table": table.gpu, "queries": queries, "keys": keys}
        for candidate in itertools.islice(listed(committed, table.capability), plan.tiles):
            tile = candidate.tile
            facts |= {"tile": dataclasses.asdict(tile), "gluon": candidate.gluon}
            facts["committed"] = candidate == Candidate(committed)
            rows.measure(
                f"{label}: {candidate.words}",
                lambda made=bench, c=candidate, f=dict(facts): made().figures(c) | f,  # type: ignore[misc]
            )


class TileBench:
    """One problem for all candidates: inputs, and a float64 reference of some of its rows."""

    def __init__(self, plan: Plan, channels: int, width: int, queries: int, keys: int) -> None:
        torch.manual_seed(0)
        self._plan = plan
        self._timed = self._problem(1, channels, width, queries, keys)
        # No whole tiles, and more than one item.
        self._ragged = self._problem(3, channels, width, 345, 301)

    def _problem(self, batch: int, channels: int, width: int, queries: int, keys: int) -> Any:
        """Tensors of a problem, some of its rows, and what these have to be."""
        from pikfix.kernels import naive

        device = self._plan.device
        dtype = torch.float16 if self._plan.on_gpu else torch.float32
        query, key = (
            naive.center_normalize(torch.randn(batch, n, channels, device=device)).to(dtype)
            for n in (queries, keys)
        )
        values = torch.rand(batch, keys, width, device=device).to(dtype)
        checked = torch.arange(0, queries, max(1, queries // _CHECKED_ROWS), device=device)
        exact = [t.double() for t in (query[:, checked], key, values)]
        return (query, key, values), checked, naive.correlation_warp(*exact, 0.01)

    @staticmethod
    def _call(candidate: Candidate, tensors: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
        if candidate.gluon:
            from pikfix.kernels import correlation_warp_gluon as gluon

            return lambda: gluon.forward(*tensors, 0.01, tile=candidate.tile)
        from pikfix.kernels import correlation_warp_triton

        return lambda: correlation_warp_triton.forward(*tensors, 0.01, None, tile=candidate.tile)

    def _error(self, candidate: Candidate, problem: Any) -> float:
        """Of the warped values; ArithmeticError if they or their maximum are wrong."""
        tensors, checked, (warped, highest) = problem
        found, maximum, _ = self._call(candidate, tensors)()
        error = float((found[:, checked].double() - warped).norm() / warped.norm())
        off = float((maximum[:, checked].double() - highest).abs().max())
        if not (error <= _LIMITS[tensors[0].element_size()] and off <= 5e-4):
            raise ArithmeticError(f"error {error:.2g}, of the maximum {off:.2g}: not timed")
        return error

    def figures(self, candidate: Candidate) -> Row:
        """Error and time of a candidate; ArithmeticError if it is wrong."""
        self._error(candidate, self._ragged)
        error = self._error(candidate, self._timed)
        call = self._call(candidate, self._timed[0])
        return {"error": error, "milliseconds": timed(call, self._plan.device, 0.05)}
