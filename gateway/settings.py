"""How the gateway is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Limits, places and who may come in.

    Attributes:
        folder: where jobs are kept; one gateway at a time uses it.
        tokens: file of bearer tokens, a line ``NAME TOKEN`` each; None lets everybody in.
        hosts: names in the ``Host`` header that are answered; none for any. On loopback they keep
            a web site of another name that points here from reading what is here.
        origins: web sites, as ``https://album.example``, whose pages may call this one (CORS).
        in_flight: photos that are sent to the server at a time.
        queue: restorations that may wait or run, uploads included; further ones get 429.
        upload_bytes: largest request.
        references: largest number of references of one request.
        library: the server's library of references, where it is on this machine.
        idle_seconds: longest pause within an upload.
        upload_seconds: longest upload.
        keep_seconds: how long a finished restoration stays.
        timeout: seconds for one attempt at one photo.
        patience: seconds to wait for a server that is away or full, for one photo.
    """

    folder: Path
    tokens: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    in_flight: int = 2
    queue: int = 64
    upload_bytes: int = 256 * MEBIBYTE
    references: int = 8
    library: Path | None = None
    idle_seconds: float = 30.0
    upload_seconds: float = 600.0
    keep_seconds: float = 86400.0
    timeout: float = 600.0
    patience: float = 120.0
