"""Which photos to restore, and where each result goes; decided before any work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.cli.problems import UsageError, explain_os
from pikfix.client._results import SUFFIX_FORMATS
from pikfix.photos import why_unreadable

# What a folder is searched for. A file named outright is sent whatever its suffix.
PICTURE_SUFFIXES = frozenset(
    {*SUFFIX_FORMATS, ".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".ppm", ".pnm", ".tga"}
)
_SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp"}


@dataclass(frozen=True)
class Job:
    """One photo, the file for its result, and the result's format."""

    photo: Path
    output: Path
    format: str


@dataclass
class Plan:
    """All jobs, and inputs that cannot be read, with the reason."""

    jobs: list[Job] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


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
    return not out.is_dir() and out.suffix.lower() in PICTURE_SUFFIXES


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
            for photo in _search(given, out, plan):
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


def _search(folder: Path, out: Path, plan: Plan) -> Iterator[Path]:
    """Yield the pictures under a folder in order; hidden files and OUT itself left out."""

    def note(error: OSError) -> None:
        plan.unreadable.append((Path(str(error.filename or folder)), explain_os(error)))

    results = _real(out)
    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and _real(Path(place) / name) != results
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(place) / name


def _job(photo: Path, out: Path, relative: Path, format: str | None) -> Job:
    own = SUFFIX_FORMATS.get(photo.suffix.lower())
    chosen = format or own or "png"
    if own != chosen:
        relative = relative.with_suffix(_SUFFIX_OF[chosen])
    return Job(photo, out / relative, chosen)


def _real(path: Path) -> Path:
    """The path without links; of a link to itself, which `Path.resolve` refuses, what it is."""
    return Path(os.path.realpath(path))


def _refuse_collisions(jobs: list[Job]) -> None:
    """Drop photos named twice; refuse two photos with one result."""
    first: dict[Path, Job] = {}
    for job in list(jobs):
        other = first.setdefault(job.output, job)
        if other is job:
            continue
        if _real(other.photo) != _real(job.photo):
            raise UsageError(
                f"{other.photo} and {job.photo} would both become {job.output}; restore them "
                "into different folders"
            )
        jobs.remove(job)


def _refuse_replacing(jobs: Sequence[Job], references: Sequence[Path]) -> None:
    inputs = {_real(path) for path in [*(job.photo for job in jobs), *references]}
    for job in jobs:
        if _real(job.output) in inputs:
            raise UsageError(
                f"the result {job.output} would replace an input; give another place with -o"
            )
