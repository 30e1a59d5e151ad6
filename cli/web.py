"""``pikfix web``: REST and the page, with a private server where none is named."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pikfix.cli.connection import Connection, with_connection
from pikfix.cli.private_server import private_server, terminate_as_interrupt
from pikfix.cli.problems import CommandError, UsageError, stop_signals
from pikfix.cli.references import LibraryReferences, serve_from
from pikfix.client import AsyncPikFixClient
from pikfix.gateway import Settings, create_app, serve
from pikfix.gateway.door import loopback_names
from pikfix.gateway.server import listen, url_of
from pikfix.gateway.settings import MEBIBYTE

HOUR = 3600.0


@with_connection
def command(
    *,
    connection: Connection,
    model_repository: Annotated[
        Path, typer.Option(help="Models for the server that is started without --url.")
    ] = Path("model_repository"),
    library: Annotated[
        Path | None,
        typer.Option(
            help="Library of colour references for photos that come without one, as "
            "`pikfix references build` makes it.",
            show_default=False,
        ),
    ] = None,
    library_references: LibraryReferences = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs --tokens or --open.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")
    ] = 8080,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="File of bearer tokens that let in, a line NAME TOKEN each.", show_default=False
        ),
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--open", help="Let in everybody who reaches the address.")
    ] = False,
    host_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that it is opened by; on loopback beside localhost, elsewhere any where "
            "none is given."
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Web site whose pages may call this, such as https://album.example."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder for photos and results; pikfix/web in the user's state folder.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0.001, help="Hours that photos and results are kept.")
    ] = 24.0,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, help="Photos in flight to the server at a time.")
    ] = 2,
    queue: Annotated[
        int, typer.Option(min=1, help="Restorations that may wait or run; others get 429.")
    ] = 64,
    max_upload: Annotated[int, typer.Option(min=1, max=2047, help="MiB of one request.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for one photo's answer.")
    ] = 600.0,
) -> None:
    """Serve REST and a page to restore photos in a browser, until Ctrl-C or SIGTERM.

    Photos and results stay in a folder of this machine for --keep hours, or until they are
    deleted; unfinished ones are done after a restart.
    """
    if not (_is_loopback(host) or tokens or everybody):
        raise UsageError(
            f"--host {host} opens the gateway to the network: give --tokens FILE, or --open to "
            "let in everybody"
        )
    if library is not None:
        if connection.url is not None:
            raise UsageError("--library goes with a server of its own: leave --url out")
        serve_from(library, library_references)
    settings = Settings(
        folder=store or _state_folder(),
        tokens=tokens,
        hosts=loopback_names(host_name or ()) if _is_loopback(host) else tuple(host_name or ()),
        origins=tuple(origin or ()),
        in_flight=jobs,
        queue=queue,
        upload_bytes=max_upload * MEBIBYTE,
        library=library,
        keep_seconds=keep * HOUR,
        timeout=timeout,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="pikfix: %(message)s")
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    connection.client()  # wrong options are named before anything is started
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(listen(host, port)))
        address = connection.url
        connected: list[str] = []
        app = create_app(settings, lambda: AsyncPikFixClient(connected[0], **connection.arguments))
        if address is None:
            print(f"starting a server on {model_repository}", file=sys.stderr, flush=True)
            with terminate_as_interrupt():
                address = stack.enter_context(private_server(model_repository))
        connected.append(address)

        def ready() -> None:
            print(f"ready: open {url_of(listener)} ; Ctrl-C ends it", flush=True)

        if not serve(app, listener, ready=ready, signals=stop_signals()):
            raise CommandError("the gateway could not be started; the lines above say why")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _state_folder() -> Path:
    """Where the XDG base directory specification keeps what should outlive a restart."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "pikfix" / "web"
