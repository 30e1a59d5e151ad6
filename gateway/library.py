"""The server's library of references: ranked for a photo, shown small, sent by name."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from pikfix.gateway.problems import Problem
from pikfix.references.errors import LibraryError
from pikfix.references.manifest import read_manifest

SHOWN = 12
_SECONDS = 120.0


def no_library() -> Problem:
    """There is no library to ask."""
    return Problem(
        404, "no_library", "There is no library", "start `pikfix web` with --library to have one"
    )


class Library:
    """A library of this machine.

    Args:
        folder: as `pikfix references build` makes it.

    Raises:
        LibraryError: it cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        read_manifest(folder)
        self._one_at_a_time = asyncio.Lock()

    def _paths(self) -> dict[str, Path]:
        try:
            manifest = read_manifest(self._folder)  # a library may be built anew at any time
        except (OSError, LibraryError) as error:
            raise self._failed("its manifest cannot be read: build it again") from error
        pictures = manifest.folder(self._folder)
        return {entry.name: pictures / entry.name for entry in manifest.entries}

    async def path_of(self, name: str) -> Path:
        """The file of a picture.

        Raises:
            Problem: 404; the library has none of this name, which is never taken for a path.
        """
        path = (await asyncio.to_thread(self._paths)).get(name)
        if path is None or not path.is_file():
            raise Problem(
                404,
                "no_reference",
                "The library has no such picture",
                f"ask for the references of the restoration again: {name[:100]!r} is not there",
            )
        return path

    async def rank(self, photo: Path, kept: Path) -> list[dict[str, Any]]:
        """The pictures that suit a photo, the best first: name, score, suits, taken.

        Args:
            photo: its file.
            kept: file that keeps the answer for the next time.

        Raises:
            Problem: 502; they could not be ranked.
        """
        async with self._one_at_a_time:
            if not kept.is_file():
                await self._rank(photo, kept)
            found: list[dict[str, Any]] = json.loads(await asyncio.to_thread(kept.read_bytes))
            return found

    async def _rank(self, photo: Path, kept: Path) -> None:
        # In a process of its own: it needs torch, whose memory goes back this way.
        words = ["references", "rank", photo, "--library", self._folder, "--top", SHOWN, "--json"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pikfix.cli.main", *map(str, words)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), _SECONDS)
        except asyncio.TimeoutError as error:
            raise self._failed("it took too long") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            last = err.decode(errors="replace").strip().rpartition("\n")[2]
            raise self._failed(last.replace(str(photo), "the photo"))
        rows = json.loads(out)["references"]
        names = ("name", "score", "suits", "taken")
        text = json.dumps([{name: row[name] for name in names} for row in rows])
        await asyncio.to_thread(kept.write_text, text)

    @staticmethod
    def _failed(why: str) -> Problem:
        return Problem(502, "library_failed", "The library cannot be used", why)
