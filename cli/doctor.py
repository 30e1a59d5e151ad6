"""``pikfix doctor``: what this installation has, and what it lacks for serving."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pikfix.cli.problems import FAILURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pikfix.serving.doctor import Environment, Repository

_DEFAULT_REPOSITORY = Path("model_repository")


def command(
    *,
    model_repository: Annotated[
        Path | None,
        typer.Option(
            help="Model repository to look at; ./model_repository if there is one.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Describe this installation; a bug report begins with it.

    Nothing is started or changed. The exit code is 1 where something keeps the server from
    running.
    """
    from pikfix.serving.doctor import examine

    if model_repository is None and _DEFAULT_REPOSITORY.is_dir():
        model_repository = _DEFAULT_REPOSITORY
    environment = examine(model_repository)
    if as_json:
        print(json.dumps(dataclasses.asdict(environment)))
    else:
        for line in lines(environment):
            print(line)
    if environment.problems:
        raise typer.Exit(FAILURE)


def lines(environment: Environment) -> Iterator[str]:
    """Yield the description, line by line."""
    python, server, machine = environment.python, environment.server, environment.machine
    yield f"python      {python.version} ({python.executable})"
    yield f"libpython   {python.libpython or 'not found'}"
    yield f"stub        {python.stub or 'none for this python'}"
    if server.path is None:
        yield "server      none"
    else:
        yield f"server      {server.source} {server.version or ''} ({server.path})"
    yield f"system      {machine.system}, glibc {machine.glibc or 'unknown'}"
    yield f"cpu         {machine.cpu or 'unknown'}, {machine.cores} cores"
    yield f"cpu flags   {' '.join(machine.cpu_flags) or 'none of interest'}"
    if machine.precisions is not None:
        good, chosen = machine.precisions.good, machine.precisions.training
        yield f"precisions  good at {', '.join(good)}: {machine.precisions.because}"
        yield f"training    takes {chosen} on this CPU unless it is told"
    yield f"memory      {_size(machine.memory)}"
    yield f"/dev/shm    {_size(machine.shm_free)} free of {_size(machine.shm_size)}"
    yield f"gpu         {'; '.join(machine.gpus) or 'none'}"
    for name, version in environment.packages.items():
        yield f"package     {name} {version or 'not installed'}"
    if environment.repository is not None:
        yield from _repository_lines(environment.repository)
    for warning in environment.warnings:
        yield f"warning     {warning}"
    for problem in environment.problems:
        yield f"problem     {problem}"
    if not environment.problems:
        yield "ready to serve"


def _repository_lines(repository: Repository) -> Iterator[str]:
    yield f"repository  {repository.path}"
    for name in repository.models:
        versions = ", ".join(map(str, repository.versions.get(name, ())))
        # Ensembles have no files of their own.
        yield f"model       {name} {versions}".rstrip()
    manifest = repository.manifest
    if manifest is not None:
        checkpoint = manifest.get("checkpoint", {})
        yield f"checkpoint  {checkpoint.get('file')} sha256 {checkpoint.get('sha256')}"
        made = [str(manifest.get(key)) for key in ("runtime", "device", "precision", "created")]
        yield f"exported    {' '.join(made)}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
