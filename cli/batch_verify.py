"""``pikfix batch verify``: whether every photo of a batch is accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pikfix.batch.manifest import from_folder, from_listing
from pikfix.batch.receipts import read_receipts
from pikfix.batch.verify import Verification, verify
from pikfix.cli.problems import FAILURE, CommandError, printable


def command(
    scans: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_LIST", help="What the batch was given.", show_default=False
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the results.", show_default=False)
    ],
    receipts: Annotated[
        Path | None,
        typer.Option(help="Folder of the receipts; .receipts in OUT.", show_default=False),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="What a machine costs an hour, to say what 1,000 photos cost."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Compare sizes and times of change, and read no picture."),
    ] = False,
    allow_failed: Annotated[
        bool,
        typer.Option("--allow-failed", help="Exit with 0 also where photos failed."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Prove that a batch is complete.

    Every photo must have a receipt, and every result be there as its receipt says, nothing else
    beside it. Each failure is named with its reason. The exit code is 1 where something is missing,
    stale or foreign, and where photos failed.
    """
    folder = out / ".receipts" if receipts is None else receipts
    if not folder.is_dir():
        raise CommandError(f"there are no receipts in {folder}; say where with --receipts")
    manifest = from_folder(scans, out) if scans.is_dir() else from_listing(scans)
    found = verify(manifest, out, folder, read_receipts(folder), quick=quick)
    if as_json:
        print(json.dumps(_as_dict(found, price)))
    else:
        for line in lines(found, price):
            print(printable(line))
    if not found.complete or (found.failed and not allow_failed):
        raise typer.Exit(FAILURE)


def _as_dict(found: Verification, price: float | None) -> dict[str, object]:
    return {
        "complete": found.complete,
        **vars(found),
        "photos_per_second": found.rate,
        "cost_per_1000": None if price is None else found.cost_per_thousand(price),
    }


def lines(found: Verification, price: float | None) -> Iterator[str]:
    """Yield what was found, line by line, the verdict last."""
    for name, reason in found.unreadable:
        yield f"unreadable  {name}: {reason}"
    for name in found.missing:
        yield f"missing     {name}"
    for name, reason in found.stale:
        yield f"stale       {name}: {reason}"
    for name in found.foreign:
        yield f"foreign     {name}"
    for name, reason in found.failed:
        yield f"failed      {name}: {reason}"
    if found.repeated:
        yield f"receipts    {found.repeated} photos have several; the last counts"
    if found.damaged:
        yield f"receipts    {found.damaged} lines are damaged and were passed over"
    if found.rate is not None:
        machines = f"{found.machines} machine{'s' if found.machines > 1 else ''}"
        hours = found.machine_s / 3600
        yield f"rate        {found.rate:.2f} photos/s; {hours:.2f} hours on {machines}"
    cost = None if price is None else found.cost_per_thousand(price)
    if cost is not None:
        yield f"cost        {cost:.2f} per 1,000 photos at {price:g} an hour"
    counts = ", ".join(f"{found.counts[one]} {one}" for one in sorted(found.counts))
    problems = [
        f"{len(items)} {word}"
        for word, items in (
            ("missing", found.missing),
            ("stale", found.stale),
            ("foreign", found.foreign),
            ("unreadable", found.unreadable),
        )
        if items
    ]
    verdict = "complete" if found.complete else f"incomplete ({', '.join(problems)})"
    yield f"{verdict}: {counts or 'nothing done'} of {found.photos} photos"
