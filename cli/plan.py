"""Which photos to restore, and where each result goes; decided before any work begins."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.cli.problems import UsageError, explain_os, printable
from pikfix.client._results import SUFFIX_FORMATS
from pikfix.photos import why_unreadable
from pikfix.photos.recognize import is_picture, suffixes

_SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp"}


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
        """Return what was left out, as in ``3 files left out: 2 .txt, 1 .mp4``; "" if nothing."""
        parts = []
        total = self.left_out.total()
        if total:
            most_first = sorted(self.left_out.items(), key=lambda one: (-one[1], one[0]))
            kinds = ", ".join(f"{count} {kind}" for kind, count in most_first)
            parts.append(f"{total} file{'s' if total > 1 else ''} left out: {kinds}")
        if self.not_followed:
            links = "a link" if self.not_followed == 1 else f"{self.not_followed} links"
            parts.append(f"{links} to a folder not followed")
        return "; ".join(parts)


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
    """Yield the pictures under a folder in order; the rest is counted, OUT itself left out."""

    def note(error: OSError) -> None:
        plan.unreadable.append((Path(str(error.filename or folder)), explain_os(error)))

    results = _real(out)
    for place, folders, files in os.walk(folder, onerror=note):
        here = Path(place)
        plan.not_followed += sum((here / name).is_symlink() for name in folders)
        folders[:] = sorted(name for name in folders if _real(here / name) != results)
        hidden = any(part.startswith(".") for part in here.relative_to(folder).parts)
        for name in sorted(files):
            path = here / name
            try:
                kind = "hidden" if hidden or name.startswith(".") else _why_left_out(path)
            except OSError as error:
                plan.unreadable.append((path, error.strerror or str(error)))
                continue
            if kind is None:
                yield path
            else:
                plan.left_out[kind] += 1


def _why_left_out(path: Path) -> str | None:
    """Return the suffix or kind of a file that is no picture; None for a picture."""
    # What is called a picture and is none, such as a named pipe, is an input that fails.
    if path.suffix.lower() in suffixes():
        return None
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # a link to nothing
        regular = False
    if not regular:
        return "special"  # opening a named pipe would wait for its writer
    if is_picture(path):
        return None
    return path.suffix.lower() or "without suffix"


def _job(photo: Path, out: Path, relative: Path, format: str | None) -> Job:
    own = SUFFIX_FORMATS.get(photo.suffix.lower())
    chosen = format or own or "png"
    if own != chosen:
        # After the whole name: scan.bmp and scan.png, or scan.tif, must not become one file, and
        # where a result goes must not depend on what else is in the folder today.
        relative = relative.with_name(relative.name + _SUFFIX_OF[chosen])
    return Job(photo, out / relative, chosen)


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
