"""Which photos to restore, and where each result goes; decided before any work begins."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.batch.manifest import result_name
from pikfix.cli.problems import UsageError, printable
from pikfix.client._results import SUFFIX_FORMATS
from pikfix.photos import why_unreadable
from pikfix.photos.recognize import suffixes
from pikfix.photos.search import describe_left_out, find_pictures


@dataclass(frozen=True)
class Job:
    """One photo, the file for its result, and the result's format."""

    photo: Path
    output: Path
    format: str


@dataclass
class Plan:
    """All jobs, and what is no job.

    Attributes:
        jobs: what to restore.
        unreadable: inputs that cannot be read, with the reason.
        left_out: how many files of the folders are no pictures, by suffix or kind.
        not_followed: links to folders, which are not searched.
    """

    jobs: list[Job] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    not_followed: int = 0

    def describe_left_out(self) -> str:
        """Return what was left out in a line; "" if nothing."""
        return describe_left_out(self.left_out, self.not_followed)


def make_plan(
    photos: Sequence[Path], out: Path, format: str | None, references: Sequence[Path] = ()
) -> Plan:
    """Return what to do.

    A single photo goes to the file OUT if that has a picture's suffix; everything else goes
    into the folder OUT, files by their names and folders with their sub-folders.

    Args:
        photos: files and folders.
        out: the result file or folder.
        format: of all results; None keeps each photo's own, or PNG where that cannot be
            written.
        references: files that must not be overwritten either.

    Raises:
        UsageError: two photos would have one result, a result would replace an input, or
            OUT does not fit the photos.
    """
    if len(photos) == 1 and not photos[0].is_dir() and _is_file_name(out):
        plan = _single(photos[0], out, format)
    else:
        plan = _into_folder(photos, out, format)
    _refuse_collisions(plan.jobs)
    _refuse_replacing(plan.jobs, references)
    return plan


def _is_file_name(out: Path) -> bool:
    return not out.is_dir() and out.suffix.lower() in suffixes()


def _single(photo: Path, out: Path, format: str | None) -> Plan:
    named = SUFFIX_FORMATS.get(out.suffix.lower())
    if named is None:
        raise UsageError(
            f"cannot write {out.suffix} files; name the result .jpg, .png, .tif, .webp"
        )
    if format not in (None, named):
        raise UsageError(f"--format {format} and the name {out} contradict each other")
    reason = why_unreadable(photo)
    if reason is not None:
        return Plan(unreadable=[(photo, reason)])
    return Plan(jobs=[Job(photo, out, named)])


def _into_folder(photos: Sequence[Path], out: Path, format: str | None) -> Plan:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder for the results with -o")
    if _is_file_name(out):
        raise UsageError(f"{out} names one picture; give a folder for several results with -o")
    plan = Plan()
    for given in photos:
        if given.is_dir():
            found = find_pictures(given, unless=out)
            plan.unreadable += found.unreadable
            plan.left_out += found.left_out
            plan.not_followed += found.not_followed
            for photo in found.pictures:
                reason = why_unreadable(photo)
                if reason is None:
                    plan.jobs.append(_job(photo, out, photo.relative_to(given), format))
                else:
                    plan.unreadable.append((photo, reason))
            continue
        reason = why_unreadable(given)
        if reason is None:
            plan.jobs.append(_job(given, out, Path(given.name), format))
        else:
            plan.unreadable.append((given, reason))
    return plan


def _job(photo: Path, out: Path, relative: Path, format: str | None) -> Job:
    name, chosen = result_name(relative.name, format)
    return Job(photo, out / relative.with_name(name), chosen)


def _real(path: Path) -> Path:
    """The path without links; of a link to itself, which `Path.resolve` refuses, what it is."""
    return Path(os.path.realpath(path))


_NAMED_AT_MOST = 10


def _refuse_collisions(jobs: list[Job]) -> None:
    """Drop photos named twice; refuse photos that would have one result, naming them all."""
    by_output: dict[Path, dict[Path, Job]] = {}
    for job in jobs:
        by_output.setdefault(job.output, {}).setdefault(_real(job.photo), job)
    jobs[:] = [job for same in by_output.values() for job in same.values()]
    clashes = [
        printable(
            f"{' and '.join(str(job.photo) for job in same.values())} would "
            f"{'both' if len(same) == 2 else 'all'} become {output}"
        )
        for output, same in by_output.items()
        if len(same) > 1
    ]
    if clashes:
        more = len(clashes) - _NAMED_AT_MOST
        if more > 0:
            clashes[_NAMED_AT_MOST:] = [f"and {more} more"]
        raise UsageError(f"{'; '.join(clashes)}; restore them into different folders")


def _refuse_replacing(jobs: Sequence[Job], references: Sequence[Path]) -> None:
    inputs = {_real(path) for path in [*(job.photo for job in jobs), *references]}
    for job in jobs:
        if _real(job.output) in inputs:
            raise UsageError(
                f"the result {printable(str(job.output))} would replace an input; give another "
                "place with -o"
            )
