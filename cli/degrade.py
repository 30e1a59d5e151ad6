"""``pikfix degrade``: make old photos out of new ones."""

from __future__ import annotations

import json
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import track

from pikfix.cli.choices import Strength
from pikfix.cli.plan import Job, Plan, make_plan
from pikfix.cli.problems import FAILURE, CommandError, UsageError, printable
from pikfix.photos import (
    PhotoError,
    decode_photo,
    encode_photo,
    read_picture_file,
    write_atomically,
)
from pikfix.training.degradation import (
    DEGRADATIONS,
    MIN_SIDE,
    DegradationConfig,
    Degraded,
    degrade,
)


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
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same damage.")] = 0,
    strength: Annotated[
        Strength, typer.Option(help="How much the photos have suffered.")
    ] = Strength.default,
    mask: Annotated[
        bool,
        typer.Option("--mask", help="Also write where the damage is, as NAME.mask.png."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = (
        False
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per photo.")
    ] = False,
) -> None:
    """Make old photos out of new ones: scratched, torn, stained, faded.

    Each photo's damage depends on the seed and on its place under the given folder alone. A photo
    that cannot be read is named on stderr, the others go on, and the exit code is 1.
    """
    plan = make_plan(photos, out, None)
    written = [job.output for job in plan.jobs]
    if mask:
        written += [_mask_path(job) for job in plan.jobs]
        taken = {job.photo.resolve() for job in plan.jobs} | {
            job.output.resolve() for job in plan.jobs
        }
        for path in map(_mask_path, plan.jobs):
            if path.resolve() in taken:
                raise UsageError(f"the mask {path} would replace a photo; give another -o")
    existing = [path for path in written if os.path.lexists(path)]
    if existing and not overwrite:
        raise CommandError(
            f"{existing[0]} exists already; nothing was done; give --overwrite or another "
            "place with -o"
        )
    if not plan.jobs and not plan.unreadable:
        raise CommandError(f"there are no pictures in {', '.join(map(str, photos))}")
    failed = 0
    for path, reason in plan.unreadable:
        failed += 1
        _fail(path, reason, as_json)
    # A colour photo always gets the tones of an old print; a vivid one would not look old.
    config = replace(DEGRADATIONS[strength.value], always=("toning",))
    terminal = sys.stderr.isatty()
    for job in track(plan.jobs, "degrading", console=Console(stderr=True), disable=not terminal):
        place = job.output.name if job.output == out else job.output.relative_to(out).as_posix()
        rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(place))])
        try:
            _degrade(job, rng, config, mask=mask)
        except PhotoError as error:
            failed += 1
            _fail(job.photo, error.message, as_json)
            continue
        if as_json:
            result = {"photo": str(job.photo), "result": str(job.output), "seed": seed}
            if mask:
                result["mask"] = str(_mask_path(job))
            print(json.dumps(result), flush=True)
        else:
            print(printable(f"{job.photo} -> {job.output}"), flush=True)
    _tell_left_out(plan)
    if failed:
        raise typer.Exit(FAILURE)


def _tell_left_out(plan: Plan) -> None:
    left_out = plan.describe_left_out()
    if left_out:
        print(left_out, file=sys.stderr)


def _degrade(job: Job, rng: np.random.Generator, config: DegradationConfig, *, mask: bool) -> None:
    try:
        data = read_picture_file(job.photo)
    except OSError as error:
        raise PhotoError("bad_photo", error.strerror or str(error)) from error
    pixels = decode_photo(data).pixels
    if min(pixels.shape[:2]) < MIN_SIDE:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise PhotoError("bad_photo", f"{size} pixels are too few: sides of {MIN_SIDE} at least")
    peak = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    image = pixels.astype(np.float32)
    image /= np.float32(peak)
    if image.ndim == 2:  # grey paper turns brown, too
        image = np.repeat(image[..., None], 3, axis=2)
    degraded: Degraded = degrade(image, rng, config)
    # JPEG is left to the degradation itself: the file must hold what was drawn.
    result, _ = encode_photo(_bytes(degraded.image), job.format, quality=95)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.output, result)
    if mask:
        write_atomically(_mask_path(job), encode_photo(_bytes(degraded.mask), "png")[0])


def _bytes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = np.rint(values * np.float32(255)).astype(np.uint8)
    return pixels


def _mask_path(job: Job) -> Path:
    return job.output.with_name(f"{job.output.stem}.mask.png")


def _fail(path: Path, reason: str, as_json: bool) -> None:
    print(f"{path}: {reason}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"photo": str(path), "result": None, "error": reason}), flush=True)
