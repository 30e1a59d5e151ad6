"""``pikfix restore``: photos and folders of photos through a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pikfix.cli.connection import Connection, with_connection
from pikfix.cli.output import Reporter
from pikfix.cli.plan import Job, Plan, make_plan
from pikfix.cli.private_server import private_server, terminate_as_interrupt
from pikfix.cli.problems import (
    BROKEN_PIPE,
    FAILURE,
    INTERRUPTED,
    SUCCESS,
    CommandError,
    UsageError,
    printable,
)
from pikfix.cli.references import LibraryReferences, choose_here, serve_from
from pikfix.cli.runner import FileReference, Outcome, References, Run, Settings
from pikfix.client import AsyncPikFixClient, Retry
from pikfix.photos import read_picture_file

# A supervised server needs this long to load its models again.
_RECONNECT_TIMEOUT = 120.0


class SystemName(str, Enum):
    """Systems, and those that follow each other."""

    pikfix = "pikfix"
    latent = "latent"
    latent_pikfix = "latent+pikfix"


class Format(str, Enum):
    """Formats of a result."""

    jpeg = "jpeg"
    png = "png"
    tiff = "tiff"
    webp = "webp"


class Profile(str, Enum):
    """Colour profiles of a result."""

    own = "own"
    srgb = "srgb"


class Depth(str, Enum):
    """Bits a sample of a result."""

    eight = "8"
    sixteen = "16"


class Pages(str, Enum):
    """What becomes of a file with several photos."""

    all = "all"
    first = "first"


@with_connection
def command(
    photos: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTO_OR_FOLDER",
            help="Pictures, and folders to search for pictures with all their sub-folders.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="Folder for the results, or the result's file for a single photo.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Colour photo to take the colours from; may be given several times."),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(
            help="Choose each photo's references from this library, as `pikfix references build` "
            "makes it.",
            show_default=False,
        ),
    ] = None,
    library_references: LibraryReferences = None,
    color: Annotated[
        bool,
        typer.Option(
            "--color/--no-color", help="Colorize, or restore only and give a grey picture."
        ),
    ] = True,
    force_color: Annotated[
        bool,
        typer.Option(
            "--force-color", help="Colorize even where no reference of the library suits the photo."
        ),
    ] = False,
    force_photo: Annotated[
        bool,
        typer.Option(
            "--force-photo",
            help="Restore the whole picture, also its border, a page of text or a drawing, which "
            "otherwise come back as they are.",
        ),
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option(
            help="Format of the results; each photo's own where that can be written, else PNG."
        ),
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP results.")
    ] = 95,
    profile: Annotated[
        Profile,
        typer.Option(
            help="Colour profile of the results: the photo's own where that can hold them, or sRGB."
        ),
    ] = Profile.own,
    depth: Annotated[
        Depth | None,
        typer.Option(
            help="Bits a sample of the results; the photo's own where the format can hold them.",
            show_default=False,
        ),
    ] = None,
    pages: Annotated[
        Pages,
        typer.Option(
            help="Of files with several photos on pages of their own, restore the first; without "
            "it they fail, as a result holds one."
        ),
    ] = Pages.all,
    keep_color: Annotated[
        bool,
        typer.Option(
            "--keep-color",
            help="Photos that have colours keep them; their luminance alone is restored.",
        ),
    ] = False,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of the restoration; 0 leaves the tones.")
    ] = 1.0,
    color_strength: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of the colours.")
    ] = 1.0,
    faces: Annotated[
        bool,
        typer.Option(
            "--faces/--no-faces",
            help="Draw faces anew, where the server has a generator of them (--system latent).",
        ),
    ] = True,
    system: Annotated[
        SystemName,
        typer.Option(
            help="pikfix restores luminance and colorizes; latent mends scratches and holes and "
            "keeps the photo's colours; latent+pikfix mends and then colorizes."
        ),
    ] = SystemName.pikfix,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of a single photo's damage, white where it is: filled beside what "
            "is found.",
            show_default=False,
        ),
    ] = None,
    connection: Connection,
    model_repository: Annotated[
        Path, typer.Option(help="Models for the server that is started without --url.")
    ] = Path("model_repository"),
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Photos in flight at the same time, at most; fewer while "
            "the server's queues are full.",
        ),
    ] = 2,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds to wait for one photo's answer; waiting for a place in the "
            "server's queue does not count.",
        ),
    ] = 300.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = (
        False
    ),
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave photos whose result exists.")
    ] = False,
    write_sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar/--no-sidecar",
            help="Write beside each result, as NAME.pikfix.json, how it was made: digests of all "
            "files, references and their shares, options, versions.",
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per photo.")
    ] = False,
) -> None:
    """Restore and colorize photos.

    A folder is searched for every picture that can be read, also without a suffix; what else it
    holds is counted on stderr. Results keep their photo's name; one in another format gets its
    suffix after it, so that scan.bmp becomes scan.bmp.png.

    Results appear whole or not at all, and never replace an input. Where a result exists
    already, nothing is done at all, unless --overwrite or --skip-existing says what to do. A
    photo that fails is named on stderr, the others go on, and the exit code is 1. A full queue
    or a server that is being restarted is waited for. If nobody reads the output any more (as
    after | head), the run stops, names on stderr what was not restored, and exits with 141.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    refuse_contradictions(
        reference=reference,
        library=library,
        color=color,
        force_color=force_color,
        keep_color=keep_color,
    )
    refuse_unfit(system, reference=reference, library=library, force_color=force_color)
    plan = make_plan(photos, out, None if format is None else format.value, reference or ())
    existing = [job for job in plan.jobs if os.path.lexists(job.output)]
    if existing and not overwrite and not skip_existing:
        others = f" and {len(existing) - 1} other results" if len(existing) > 1 else ""
        first = printable(str(existing[0].output))
        raise CommandError(
            f"{first}{others} exist{'' if others else 's'} already; nothing was "
            "done; give --overwrite, --skip-existing or another place with -o"
        )
    _refuse_nothing(plan, photos)
    if mask is not None and len(plan.jobs) != 1:
        raise UsageError(f"--mask is of one photo, and {len(plan.jobs)} are to be restored")
    settings = settings_of(
        connection,
        reference=reference,
        library=library,
        library_references=library_references,
        color=color,
        force_color=force_color,
        force_photo=force_photo,
        quality=quality,
        profile=profile,
        depth=depth,
        pages=pages,
        keep_color=keep_color,
        strength=strength,
        color_strength=color_strength,
        faces=faces,
        system=system,
        mask=mask,
        jobs=jobs,
        timeout=timeout,
        overwrite=overwrite,
        write_sidecar=write_sidecar,
    )
    client = connection.client()
    _check_place(plan, out)
    with Reporter(len(plan.jobs) + len(plan.unreadable), as_json=as_json) as reporter:
        run = Run(settings, reporter, reporter.complain)
        skipped = set(existing) if skip_existing else set()
        todo = [job for job in plan.jobs if job not in skipped]
        try:
            _report_known(plan, skipped, reporter, out)
            if todo:
                work_through(run, todo, client, model_repository, reporter)
        except BaseException:
            # Every photo is accounted for, also where there was no server to send it to.
            if not run.begun:
                for job in todo:
                    with contextlib.suppress(OSError):
                        reporter(Outcome(job, "unfinished"))
            raise
        finally:
            if isinstance(reporter.unheard, BrokenPipeError):
                reporter.complain("pikfix: stopped, as nobody reads the output any more")
            elif reporter.unheard:
                reporter.complain("pikfix: stopped, as the output cannot be written")
            reporter.summarize(plan.describe_left_out())
        if run.fatal_error is not None and reporter.count("unfinished"):
            reporter.complain("pikfix: stopped, as the remaining photos would have failed alike")
    code = exit_code(run, reporter)
    if code != SUCCESS:
        raise typer.Exit(code)


def refuse_contradictions(
    *,
    reference: Sequence[Path] | None,
    library: Path | None,
    color: bool,
    force_color: bool,
    keep_color: bool,
) -> None:
    """Raise UsageError where options exclude each other."""
    if library is not None and reference:
        raise UsageError("--library and --reference exclude each other")
    if force_color and not color:
        raise UsageError("--force-color and --no-color exclude each other")
    if keep_color and not color:
        raise UsageError("--keep-color and --no-color exclude each other")


def refuse_unfit(
    system: SystemName,
    *,
    reference: Sequence[Path] | None,
    library: Path | None,
    force_color: bool,
) -> None:
    """Raise UsageError where an option is nothing that the system can do."""
    if system is SystemName.latent and (reference or library is not None or force_color):
        raise UsageError(
            "--system latent adds no colours: leave out --reference, --library and --force-color, "
            "or give --system latent+pikfix"
        )


def settings_of(
    connection: Connection,
    *,
    reference: Sequence[Path] | None,
    library: Path | None,
    library_references: int | None,
    color: bool,
    force_color: bool,
    force_photo: bool,
    quality: int,
    profile: Profile,
    depth: Depth | None,
    pages: Pages,
    keep_color: bool,
    strength: float,
    color_strength: float,
    jobs: int,
    timeout: float,
    overwrite: bool,
    write_sidecar: bool,
    faces: bool = True,
    system: SystemName = SystemName.pikfix,
    mask: Path | None = None,
) -> Settings:
    """Return what the options ask for.

    Raises:
        OSError: a reference cannot be read.
        CommandError: a reference is empty.
    """
    return Settings(
        references=_references(
            reference or [],
            library,
            connection.url,
            force=force_color,
            whole=force_photo,
            count=library_references,
        ),
        color=color,
        force_color=force_color,
        force_photo=force_photo,
        quality=quality,
        profile=profile.value,
        depth=None if depth is None else int(depth.value),
        pages=pages.value,
        keep_color=keep_color,
        strength=strength,
        color_strength=color_strength,
        timeout=timeout,
        in_flight=jobs,
        overwrite=overwrite,
        reconnect_timeout=_RECONNECT_TIMEOUT,
        sidecars=write_sidecar,
        faces=faces,
        system=system.value,
        mask=None if mask is None else read_picture_file(mask),
    )


def _refuse_nothing(plan: Plan, photos: Sequence[Path]) -> None:
    if plan.jobs or plan.unreadable:
        return
    left_out = plan.describe_left_out()
    raise CommandError(
        f"there are no pictures in {', '.join(printable(str(one)) for one in photos)}"
        f"{f' ({left_out})' if left_out else ''}"
    )


def exit_code(run: Run, reporter: Reporter) -> int:
    """Return what the process ends with after a run."""
    if run.interrupted:
        return INTERRUPTED
    if isinstance(reporter.unheard, BrokenPipeError):
        return BROKEN_PIPE
    return FAILURE if reporter.count("failed") or reporter.count("unfinished") else SUCCESS


def work_through(
    run: Run,
    jobs: Collection[Job],
    client: AsyncPikFixClient | None,
    model_repository: Path,
    reporter: Reporter,
) -> None:
    """Restore all photos, on a private server where there is no client.

    Raises:
        PikFixError: the server does not answer at all.
        ServingError: the private server cannot be started.
    """

    async def work(ready: AsyncPikFixClient) -> None:
        async with ready:
            # One message instead of one per photo where there is no server.
            await ready.ensure_ready(run.settings.system)
            await run.over(jobs, ready)

    with contextlib.ExitStack() as stack:
        if client is None:
            reporter.describe("starting a server")
            with terminate_as_interrupt():
                url = stack.enter_context(private_server(model_repository))
            client = AsyncPikFixClient(url, retry=Retry.never())
        reporter.describe("restoring")
        asyncio.run(work(client))


def _references(
    files: Sequence[Path],
    library: Path | None,
    url: str | None,
    *,
    force: bool,
    whole: bool,
    count: int | None,
) -> References:
    if library is not None:
        if url is not None:
            return choose_here(library, force=force, whole=whole, count=count)
        # The private server chooses, while the networks work on other photos.
        serve_from(library, count)
    sent = [FileReference(read_picture_file(path), path.name) for path in files]
    for path, data in zip(files, sent, strict=True):
        if not data:
            raise CommandError(f"the reference {path} is empty")
    return lambda photo: sent


def _check_place(plan: Plan, out: Path) -> None:
    """Make the folder for the results and see that it can be written to."""
    if plan.jobs:
        make_place(out if any(job.output != out for job in plan.jobs) else out.parent)


def make_place(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        OSError: it cannot be made.
        CommandError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(f"{folder} cannot be written to; give another place with -o")


def _report_known(plan: Plan, skipped: set[Job], reporter: Reporter, out: Path) -> None:
    for path, reason in plan.unreadable:
        reporter(Outcome(Job(path, out, ""), "failed", error=CommandError(reason)))
    for job in plan.jobs:
        if job in skipped:
            reporter(Outcome(job, "skipped"))
