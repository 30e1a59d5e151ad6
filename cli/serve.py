"""``pikfix serve``: a supervised server in the foreground."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from pikfix.cli.private_server import terminate_as_interrupt
from pikfix.cli.problems import FAILURE
from pikfix.cli.references import LibraryReferences, serve_from


def command(
    *,
    model_repository: Annotated[
        Path, typer.Option(help="Folder of models, as `pikfix export` fills it.")
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
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port for gRPC; 0 takes a free one.")
    ] = 8001,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port for HTTP; 0 takes a free one.")
    ] = 8000,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port for metrics; 0 takes a free one.")
    ] = 8002,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on, such as 127.0.0.1 or ::1. Any but loopback opens the "
            "server to the network, without authentication."
        ),
    ] = "127.0.0.1",
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="File to append Triton's log to; a temporary one, kept after a failure.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM.

    It is restarted when it, or one of its steps, dies. It works on as many photos at a time as
    max_in_flight in the config.pbtxt of decode_photo says, 16 as `pikfix export` writes it for a
    CPU; further ones are refused at once, and clients send them again.
    """
    from pikfix.serving.server import run_until_signal, start_server

    if library is not None:
        serve_from(library, library_references)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="pikfix: %(message)s")
    with terminate_as_interrupt():
        print(f"starting a server on {model_repository}", file=sys.stderr, flush=True)
        server = start_server(
            model_repository,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            address=host,
            log_file=log_file,
        )
    with server:
        print(
            f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics "
            f"{server.metrics_url}; log {server.log_file}; Ctrl-C ends it",
            flush=True,
        )
        code = run_until_signal(server)
    if code:
        raise typer.Exit(FAILURE)
