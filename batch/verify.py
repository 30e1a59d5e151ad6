"""Whether a batch is complete, and its results those that the receipts tell of."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.batch.manifest import Manifest
from pikfix.batch.receipts import DONE, FileFacts, Ledger, Receipt
from pikfix.photos.sidecar import SUFFIX as SIDECAR

_THREADS = 4
_AT_A_TIME = 1000
_PART = 1 << 20


@dataclass
class Verification:
    """What was found.

    Attributes:
        photos: how many the batch has.
        counts: how many photos met which fate.
        missing: photos without a receipt, or whose work did not end.
        stale: photos whose result is not what their receipt says, with what is wrong.
        foreign: files among the results that no receipt tells of.
        failed: photos that failed, with the reason.
        unreadable: what the manifest could not look into, with the reason.
        repeated: photos of several receipts, of which the last counts.
        damaged: lines of receipts that cannot be read.
        machine_s: seconds that machines worked.
        wall_s: seconds in which at least one did.
        machines: how many they were.
    """

    photos: int
    counts: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    stale: list[tuple[str, str]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    repeated: int = 0
    damaged: int = 0
    machine_s: float = 0.0
    wall_s: float = 0.0
    machines: int = 0

    @property
    def complete(self) -> bool:
        """Whether every photo has its result or its failure, and nothing else is there."""
        return not (self.missing or self.stale or self.foreign or self.unreadable)

    @property
    def rate(self) -> float | None:
        """Photos a second, over all machines; None of no time at all."""
        ended = self.photos - len(self.missing)
        return ended / self.wall_s if self.wall_s > 0 else None

    def cost_per_thousand(self, price: float) -> float | None:
        """Return what 1,000 photos cost where a machine costs `price` an hour."""
        ended = self.photos - len(self.missing)
        return price * self.machine_s / 3600 / ended * 1000 if ended else None


def verify(
    manifest: Manifest, out: Path, receipts: Path, ledger: Ledger, *, quick: bool = False
) -> Verification:
    """Compare photos, receipts and results.

    Args:
        manifest: the photos that there should be.
        out: folder of the results.
        receipts: folder of the receipts, which may be below it.
        ledger: what the receipts say.
        quick: compare sizes and times of change instead of reading every file.

    Raises:
        OSError: a folder cannot be read.
    """
    found = Verification(
        len(manifest.names),
        unreadable=list(manifest.unreadable),
        damaged=ledger.damaged,
        machine_s=ledger.machine_seconds(),
        wall_s=ledger.wall_seconds(),
        machines=len({host for host, _, _ in ledger.spans}),
    )
    ended: list[tuple[str, Receipt]] = []
    for name in manifest.names:
        receipt = ledger.receipts.get(name)
        if receipt is None or receipt.status == "begun":
            found.missing.append(name)
            continue
        ended.append((name, receipt))
        found.counts[receipt.status] += 1
        found.repeated += receipt.ends > 1
        if receipt.status == "failed":
            found.failed.append((name, receipt.reason))

    def wrong(one: tuple[str, Receipt]) -> tuple[str, str] | None:
        name, receipt = one
        problem = _photo_problem(manifest.path(name), receipt, quick=quick)
        problem = problem or _result_problem(out, receipt, quick=quick)
        return None if problem is None else (name, problem)

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(ended), _AT_A_TIME):  # each one in the pool takes memory
            problems = pool.map(wrong, ended[start : start + _AT_A_TIME])
            found.stale += [problem for problem in problems if problem is not None]
    photos = set(manifest.names)
    known: set[str] = set()
    for name, receipt in ledger.receipts.items():
        if receipt.output and receipt.status != "failed":
            known.add(receipt.output)
        if name not in photos and receipt.status in DONE:
            found.stale.append((name, "its photo is not there any more"))
    found.foreign = sorted(_foreign(out, receipts, known))
    return found


def _photo_problem(photo: str, receipt: Receipt, *, quick: bool) -> str | None:
    if receipt.photo is None or unchanged(photo, receipt.photo):
        return None
    if not quick and _digest(photo) == receipt.photo.sha256:
        return None
    return "the photo has changed since"


def _result_problem(out: Path, receipt: Receipt, *, quick: bool) -> str | None:
    if receipt.status not in DONE:
        return None
    if receipt.result is None:
        return "its receipt does not say what the result is"
    result = os.path.join(out, receipt.output)
    try:
        size = os.stat(result).st_size
    except FileNotFoundError:
        return "the result is not there"
    except OSError as error:
        return f"the result cannot be read: {error.strerror}"
    if size != receipt.result.bytes or not (quick or _digest(result) == receipt.result.sha256):
        return "the result has changed since"
    return None


def unchanged(path: str, facts: FileFacts) -> bool:
    """Tell by its size and time of change whether a photo is as its receipt says."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (facts.bytes, facts.mtime_ns)


def _digest(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(_PART):
                digest.update(part)
    except OSError:
        return None
    return digest.hexdigest()


def _foreign(out: Path, receipts: Path, known: set[str]) -> Iterator[str]:
    own = os.path.realpath(receipts)
    prefix = len(os.path.join(out, ""))

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(out, onerror=fail if out.exists() else None):
        folders[:] = [one for one in folders if os.path.realpath(os.path.join(place, one)) != own]
        if os.path.realpath(place) == own:
            continue
        for file in files:
            name = os.path.join(place, file)[prefix:]
            if name not in known and name.removesuffix(SIDECAR) not in known:
                yield name
