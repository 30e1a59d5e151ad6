"""What a run of `pikfix restore` left in its folder."""

from __future__ import annotations

from pathlib import Path

SIDECAR = ".pikfix.json"


def pictures(folder: Path) -> list[str]:
    """Sorted names of the pictures in a folder that holds them and their sidecars alone."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if not name.endswith(SIDECAR)]
    assert sorted([*found, *(name + SIDECAR for name in found)]) == names
    return found
