"""Options that say how a command reaches a server, the same for every command that calls one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pikfix.cli.options import parameters_of, spliced
from pikfix.cli.problems import UsageError
from pikfix.client import AsyncPikFixClient, Retry, Tls
from pikfix.client import _environment as environment


@dataclass(frozen=True)
class Connection:
    """A server that runs already, or none.

    Attributes:
        url: its address; None starts a private one, which needs nothing of the rest.
        arguments: further arguments of a client.
    """

    url: str | None
    arguments: dict[str, Any]

    def client(self) -> AsyncPikFixClient | None:
        """Return a client that repeats nothing by itself; None where no address was given.

        What may be sent again, a run over many photos decides, which knows of all of them.

        Raises:
            UsageError: an option has no value that it can have.
        """
        if self.url is None:
            return None
        try:
            return AsyncPikFixClient(self.url, retry=Retry.never(), **self.arguments)
        except ValueError as error:
            raise UsageError(f"--url: {error}") from error


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a connection, in place of its parameter ``connection``."""
    return spliced(command, "connection", parameters_of(_connection), _connection)


def _connection(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="gRPC address of a running server; without it one is started for this run. "
            "Several servers share the photos: dns:///HOST:PORT, ipv4:ADDRESS:PORT,ADDRESS:PORT. "
            "This and the following options also come from PIKFIX_URL, PIKFIX_TOKEN, PIKFIX_TLS_CA "
            "and their like.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Sent as `authorization: Bearer TOKEN`. Others see it in the list of processes: "
            "better in PIKFIX_TOKEN.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME: VALUE",
            help="Further metadata of every call; may be given several times.",
        ),
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option("--tls/--no-tls", help="Encrypt the connection.", show_default=False),
    ] = None,
    tls_ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Certificates to trust, as PEM."),
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="This client's certificate."),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="This client's private key."),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name that the server's certificate carries, where it is not the host.",
        ),
    ] = None,
    proxy: Annotated[
        bool | None,
        typer.Option(
            "--proxy/--no-proxy",
            help="Connect through the proxy that grpc_proxy, https_proxy or http_proxy names, or "
            "past it; by default through it, except to this machine and lists of addresses.",
            show_default=False,
        ),
    ] = None,
) -> Connection:
    """What the options and, where they are silent, the variables say."""
    given = {
        "token": token,
        "header": header or None,
        "tls": tls,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_server_name": tls_server_name,
        "proxy": proxy,
    }
    try:
        arguments = environment.connection()
        # Before the private server is told that nothing of this is for it.
        url = url or arguments.pop("url", None)
        if url is None:
            lost = [name for name, value in given.items() if value is not None]
            if lost:
                raise UsageError(f"--{lost[0].replace('_', '-')} needs the --url of a server")
            return Connection(None, {})
        if token is not None:
            arguments["token"] = token
        if header:
            added = environment.parse_headers(header)
            arguments["headers"] = {**arguments.get("headers", {}), **added}
        if proxy is not None:
            arguments["proxy"] = proxy
        arguments["tls"] = _tls(arguments.get("tls"), tls, given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Connection(url, arguments)


_FILES = {
    "tls_ca": "root_certificates",
    "tls_cert": "certificate_chain",
    "tls_key": "private_key",
    "tls_server_name": "server_name",
}


def _tls(variables: Tls | None, wanted: bool | None, given: dict[str, Any]) -> Tls | None:
    """Join options with what the variables say; any of a certificate's options means --tls."""
    changes = {name: given[key] for key, name in _FILES.items() if given[key] is not None}
    if wanted is False:
        if changes:
            raise ValueError("--no-tls excludes the other --tls-... options")
        return None
    if changes:
        return dataclasses.replace(variables or Tls(), **changes)
    return variables or (Tls() if wanted else None)
