"""The console script ``pikfix``.

Only the module of the command that is called gets imported, so that ``pikfix --help``
answers at once and a command needs no more than its own dependencies.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from pikfix.cli.problems import (
    BROKEN_PIPE,
    FAILURE,
    INTERRUPTED,
    SUCCESS,
    USAGE,
    explain,
    printable,
)

# Command -> (module, line in `pikfix --help`). The module has a function `command`, or a
# typer.Typer `app` where the command has sub-commands.
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "serve": ("pikfix.cli.serve", "Run the server."),
        "restore": ("pikfix.cli.restore", "Restore and colorize photos."),
        "batch": ("pikfix.cli.batch", "Restore many photos in parts, with receipts."),
        "web": ("pikfix.cli.web", "Serve REST and a page to restore photos in a browser."),
        "export": ("pikfix.cli.export", "Fill a model repository from a checkpoint."),
        "import": ("pikfix.cli.import_", "Make a checkpoint of weights that others published."),
        "train": ("pikfix.cli.train", "Train the networks on a folder of colour photos."),
        "calibrate": ("pikfix.cli.calibrate", "Measure activation ranges for int8."),
        "evaluate": ("pikfix.cli.evaluate", "Measure a checkpoint beside its baselines."),
        "degrade": ("pikfix.cli.degrade", "Make old photos out of new ones."),
        "references": ("pikfix.cli.references", "Build and search a library of references."),
        "inspect": ("pikfix.cli.inspect", "Say how a restored photo was made."),
        "doctor": ("pikfix.cli.doctor", "Describe this installation and what it lacks."),
    }
)

# typer carries its own copy of click since 0.26 and does not name this class.
_USAGE_ERROR: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "UsageError")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pikfix {importlib.metadata.version('pikfix')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Restore and colorize old photos.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 141 nobody reads the output.
    """


def _not_loaded() -> None:
    raise AssertionError("a command that was not chosen cannot run")


def build(chosen: str | None, *, load_all: bool = False) -> typer.Typer:
    """Return the application with the module of the chosen command loaded.

    Args:
        chosen: name of the command that will run.
        load_all: load every command, for shell completion.
    """
    app = typer.Typer(
        name="pikfix",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # boxes break option names and sentences at 80 columns
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, (module_name, line) in COMMANDS.items():
        if name != chosen and not load_all:
            app.command(name, help=line)(_not_loaded)
            continue
        module = importlib.import_module(module_name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, short_help=line)
        else:
            function: Callable[..., None] = module.command
            app.command(name, short_help=line)(function)
    return app


def _run(words: Sequence[str]) -> int:
    # No option before the command takes a value: the first other word is the command.
    chosen = next((word for word in words if not word.startswith("-")), None)
    app = build(chosen, load_all="_PIKFIX_COMPLETE" in os.environ)
    try:
        result = app(args=list(words) or ["--help"], prog_name="pikfix", standalone_mode=False)
    except SystemExit as end:
        # typer takes a broken pipe for an ordinary failure.
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    return result if isinstance(result, int) else SUCCESS


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"pikfix: {printable(message)}", file=sys.stderr)


def _discard_output() -> None:
    """Let Python's own flush at its end go nowhere, instead of failing a second time."""
    with contextlib.suppress(OSError, ValueError):
        # Not in a test, whose stdout is no file.
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open_closed_streams() -> None:
    """Let what was closed, as by 2>&-, go nowhere.

    The next file that is opened would have its number, and get what gRPC tells of; and Python
    prints on stdout what is meant for a stderr that is None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        argv: the words after the program's name; those of this process where None.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be valid text; show its odd bytes instead of failing on them.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except _USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx is not None else "pikfix"
        _complain(f"{' '.join(error.format_message().split())} (see {path} --help)")
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        _complain(message)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            _discard_output()
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
