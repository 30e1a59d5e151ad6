"""``pikfix batch``: many photos, in parts, with a receipt for each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pikfix.batch.manifest import Manifest, Shard, from_folder, from_listing, result_name
from pikfix.batch.receipts import (
    DONE,
    FileFacts,
    Ledger,
    ReceiptWriter,
    agree_on_options,
    read_receipts,
)
from pikfix.batch.verify import unchanged
from pikfix.cli import batch_ray, batch_verify, restore
from pikfix.cli.connection import Connection, with_connection
from pikfix.cli.options import parameters_of, spliced
from pikfix.cli.output import Reporter
from pikfix.cli.plan import Job
from pikfix.cli.problems import FAILURE, SUCCESS, CommandError, UsageError, printable, tell
from pikfix.cli.runner import Outcome, Run
from pikfix.client import InvalidInputError
from pikfix.references.manifest import FILE as LIBRARY_FILE

# Of the options of `restore`, those that a batch answers by its receipts, and those that leave
# results as they are.
_NOT_TAKEN = ("photos", "out", "connection", "overwrite", "skip_existing", "as_json", "mask")
_WITHOUT_EFFECT = ("jobs", "timeout", "model_repository", "write_sidecar")


class _Group(TyperGroup):
    """Takes what is no sub-command for photos: `pikfix batch SCANS` is `pikfix batch run SCANS`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _about() -> None:
    """Restore many photos, in parts that may run on several machines.

    `pikfix batch SCANS -o OUT` runs; the word run may be left out.
    """


@dataclasses.dataclass(frozen=True)
class Scan(Job):
    """A job with the names that its receipt has.

    Attributes:
        name: the photo's.
        result: the result's, below OUT.
    """

    name: str
    result: str


class _Scans(Collection[Job]):
    """Jobs that are made when their turn comes: names take a tenth of their memory."""

    def __init__(
        self, names: Sequence[str], manifest: Manifest, out: Path, format: str | None
    ) -> None:
        self._names, self._manifest, self._out, self._format = names, manifest, out, format

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Job]:
        for name in self._names:
            result, format = result_name(name, self._format)
            photo = Path(self._manifest.path(name))
            yield Scan(photo, self._out / result, format, name, result)

    def __contains__(self, job: object) -> bool:
        return isinstance(job, Scan) and job.name in self._names


def _wishes(**chosen: Any) -> dict[str, Any]:
    return chosen


def run(
    scans: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_LIST",
            help="Folder of photos, sub-folders included, or a file that lists photos, one a line.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the results.", show_default=False)
    ],
    receipts: Annotated[
        Path | None,
        typer.Option(help="Folder for the receipts; .receipts in OUT.", show_default=False),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Do part I, from 0 to N-1, of N; which photos that are depends on their names "
            "alone.",
        ),
    ] = "0/1",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Run all parts on the nodes of a Ray cluster, which share the folders.",
            show_default=False,
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(min=1, help="Parts for --ray; four on each node.", show_default=False),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also try those again that are damaged or no photos."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of which there is no receipt.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per photo.")
    ] = False,
    wishes: dict[str, Any],
    connection: Connection,
) -> None:
    """Restore many photos, and write a receipt for each.

    Whatever ends a run, the same command goes on where it was: a photo with a receipt and its
    result is not restored again, one that failed is, unless it is damaged or no photo. Parts may
    run at the same time, on several machines that share the folders. `pikfix batch verify` says
    whether all is done.
    """
    part = _part(shard, ray, parts)
    folder = out / ".receipts" if receipts is None else receipts
    here = dict(wishes)
    repository = wishes.pop("model_repository")
    chosen = wishes.pop("format")
    format = None if chosen is None else chosen.value
    exclusive = ("reference", "library", "color", "force_color", "keep_color")
    restore.refuse_contradictions(**{name: wishes[name] for name in exclusive})
    restore.refuse_unfit(
        wishes["system"],
        reference=wishes["reference"],
        library=wishes["library"],
        force_color=wishes["force_color"],
    )
    client = connection.client()
    manifest = read_manifest(scans, out)
    manifest.check_results(out, format)
    settings = restore.settings_of(connection, overwrite=True, **wishes)
    settings = dataclasses.replace(settings, digests=True)
    restore.make_place(out)
    agree_on_options(folder, _options(wishes | {"format": format}))
    if ray is not None:
        values = {"retry_failed": retry_failed, "overwrite": overwrite, "as_json": False}
        places = {"scans": scans.resolve(), "out": out.resolve(), "receipts": folder.resolve()}
        _on_ray(ray, parts, manifest, places, values | {"wishes": here, "connection": connection})
        return
    ledger = read_receipts(folder, digests=False)
    todo, before = _todo(
        manifest, part, out, format, ledger, retry_failed=retry_failed, overwrite=overwrite
    )
    with contextlib.ExitStack() as stack:
        reporter = stack.enter_context(Reporter(len(todo), as_json=as_json, brief=True))
        for place, reason in manifest.unreadable:
            reporter.complain(f"{place}: {reason}")
        work = Run(settings, reporter, reporter.complain)
        try:
            if todo:
                writer = _write_receipts(work, folder, part, reporter)
                stack.callback(writer.close)
                scans_to_do = _Scans(todo, manifest, out, format)
                restore.work_through(work, scans_to_do, client, repository, reporter)
        finally:
            if before:
                counts = ", ".join(f"{before[one]} {one}" for one in sorted(before))
                reporter.complain(f"done before: {counts}")
            reporter.summarize(manifest.describe_left_out())
        if work.fatal_error is not None and reporter.count("unfinished"):
            reporter.complain("pikfix: stopped, as the remaining photos would have failed alike")
    code = restore.exit_code(work, reporter)
    if code == SUCCESS and (before["failed"] or manifest.unreadable):
        code = FAILURE
    if code != SUCCESS:
        raise typer.Exit(code)


def _part(shard: str, ray: str | None, parts: int | None) -> Shard:
    try:
        part = Shard.parse(shard)
    except ValueError as error:
        raise UsageError(f"--shard: {error}") from error
    if parts is not None and ray is None:
        raise UsageError("--parts goes with --ray")
    if ray is not None and part.count > 1:
        raise UsageError("--ray and --shard exclude each other")
    return part


def _write_receipts(work: Run, folder: Path, part: Shard, reporter: Reporter) -> ReceiptWriter:
    facts = {"part": str(part), "version": importlib.metadata.version("pikfix")}
    writer = ReceiptWriter(folder, facts)
    work.begin = lambda job: writer.begin(_scan(job).name)
    work.report = lambda outcome: _conclude(writer, outcome, reporter)
    return writer


def _on_ray(
    address: str,
    parts: int | None,
    manifest: Manifest,
    places: dict[str, Path],
    values: dict[str, Any],
) -> None:
    def work(part: Shard) -> int:
        try:
            # A process may do several parts, and each takes its options out of them.
            chosen = {**values, "wishes": dict(values["wishes"])}
            run(**{**places, **chosen, "shard": str(part)})
        except typer.Exit as end:
            return end.exit_code
        return SUCCESS

    codes = []
    serves = values["connection"].url is None
    for part, code in batch_ray.run_parts(address, parts, work, serves=serves):
        codes.append(code)
        tell(f"part {part} has ended ({len(codes)} of {part.count})")
    ledger = read_receipts(places["receipts"], digests=False)
    found = (ledger.receipts.get(name) for name in manifest.names)
    counts = Counter("unfinished" if one is None else one.status for one in found)
    tell(", ".join(f"{counts[one]} {one}" for one in sorted(counts)))
    if any(codes) or manifest.unreadable:
        raise typer.Exit(FAILURE)


def read_manifest(scans: Path, out: Path) -> Manifest:
    """Return the photos of a folder or a list.

    Raises:
        OSError: it cannot be read.
        CommandError: there are none.
    """
    manifest = from_folder(scans, out) if scans.is_dir() else from_listing(scans)
    if not manifest.names and not manifest.unreadable:
        left_out = manifest.describe_left_out()
        why = f" ({left_out})" if left_out else ""
        raise CommandError(f"there are no pictures in {printable(str(scans))}{why}")
    return manifest


def _scan(job: Job) -> Scan:
    assert isinstance(job, Scan)
    return job


def _conclude(writer: ReceiptWriter, outcome: Outcome, reporter: Reporter) -> None:
    if outcome.status != "unfinished":
        scan, said = _scan(outcome.job), outcome.to_dict()
        writer.end(
            scan.name,
            {
                "status": outcome.status,
                "output": scan.result if outcome.status in DONE else None,
                "input": _facts(outcome.photo),
                "result": _facts(outcome.result),
                "final": isinstance(outcome.error, InvalidInputError),
                **{key: said[key] for key in ("seconds", "report", "error")},
            },
        )
    reporter(outcome)


def _facts(facts: FileFacts | None) -> dict[str, Any] | None:
    return None if facts is None else facts._asdict()


def _options(wishes: dict[str, Any]) -> dict[str, Any]:
    """What makes results what they are; of files their contents, wherever they lie."""
    found = {key: value for key, value in wishes.items() if key not in _WITHOUT_EFFECT}
    found["reference"] = [_digest(path) for path in wishes["reference"] or []]
    if found["system"] is restore.SystemName.pikfix:
        del found["system"]  # as batches of before have it, which go on
    library = wishes["library"]
    found["library"] = None if library is None else _digest(library / LIBRARY_FILE)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _todo(
    manifest: Manifest,
    shard: Shard,
    out: Path,
    format: str | None,
    ledger: Ledger,
    *,
    retry_failed: bool,
    overwrite: bool,
) -> tuple[list[str], Counter[str]]:
    """Return the names of the part's photos that are to be done, and counts of the others."""
    todo: list[str] = []
    before: Counter[str] = Counter()
    strangers: list[str] = []
    place = f"{out}{os.sep}"
    for name in manifest.part(shard):
        receipt = ledger.receipts.get(name)
        if receipt is None:
            if not overwrite and os.path.lexists(place + result_name(name, format)[0]):
                strangers.append(name)
            todo.append(name)
            continue
        kept = receipt.photo is not None and unchanged(manifest.path(name), receipt.photo)
        if receipt.status in DONE and receipt.result is not None:
            with contextlib.suppress(OSError):
                size = os.stat(place + receipt.output).st_size  # noqa: PTH116 - of a million
                if kept and size == receipt.result.bytes:
                    before[receipt.status] += 1
                    continue
        elif receipt.status == "failed" and receipt.final and kept and not retry_failed:
            before["failed"] += 1
            continue
        todo.append(name)
    if strangers:
        first = printable(place + result_name(strangers[0], format)[0])
        others = f" and {len(strangers) - 1} other results" if len(strangers) > 1 else ""
        raise CommandError(
            f"{first}{others} exist{'' if others else 's'} already, and no receipt says that this "
            "batch made them; nothing was done; give --overwrite or another place with -o"
        )
    return todo, before


app.command("run", short_help="Restore many photos; this word may be left out.")(
    with_connection(
        spliced(
            run,
            "wishes",
            parameters_of(restore.command.__wrapped__, _NOT_TAKEN),  # type: ignore[attr-defined]
            _wishes,
        )
    )
)
app.command("verify")(batch_verify.command)
