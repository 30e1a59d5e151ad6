"""Bearer tokens from a file."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

MIN_LENGTH = 16


class TokensError(Exception):
    """The file of tokens cannot be used; one line that says why."""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Tokens:
    """Who may come in, read again whenever the file changes.

    Args:
        path: a line ``NAME TOKEN`` each; empty ones and those that begin with ``#`` do not count.

    Raises:
        TokensError: a line has another form, a token is short, or there is none.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._names = self._read()

    def _stamp(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for number, line in enumerate(self._path.read_text().splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) < MIN_LENGTH:
                raise TokensError(
                    f"{self._path}, line {number}: write NAME TOKEN, the token of at least "
                    f"{MIN_LENGTH} characters (python3 -c 'import secrets; "
                    "print(secrets.token_urlsafe())' makes one)"
                )
            names[_digest(words[1])] = words[0]
        if not names:
            raise TokensError(f"{self._path} holds no token: write a line NAME TOKEN")
        return names

    def name_of(self, authorization: str | None) -> str | None:
        """Whose token an ``Authorization`` header carries; None for nobody's.

        A file that changed and cannot be used lets in nobody: it may be the one that a token was
        taken out of.
        """
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._names, self._seen = {}, stamp
                self._names = self._read()
        except (OSError, TokensError, UnicodeDecodeError):
            return None
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given = _digest(token.strip())
        found = None
        for digest, name in self._names.items():  # all of them: no timing tells which is near
            if hmac.compare_digest(digest, given):
                found = name
        return found
