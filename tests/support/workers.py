"""What test workers that run side by side share, and what each has for itself."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Inherited by every process that a test starts: tells this worker's servers from its neighbours'.
OWNER = "PIKFIX_TEST_OWNER"
FOLDER_PREFIX = "pikfix-tests-"


def settle(config: pytest.Config) -> None:
    """Give this process its name and, beside others, a temporary folder of its own."""
    os.environ[OWNER] = secrets.token_hex(8)
    if hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None  # read again


def is_mine(process: Path) -> bool:
    """Whether /proc's `process` was started by this worker; one that has gone was not."""
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{OWNER}={os.environ[OWNER]}".encode() in environment


def neighbours_folders() -> list[Path]:
    """The temporary folders of the other workers, of this run and of others."""
    own = Path(tempfile.gettempdir())
    return [folder for folder in Path("/tmp").glob(f"{FOLDER_PREFIX}*") if folder != own]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, by the first of the workers that asks for it.

    What is in it belongs to all of them: no test may change it.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"shared-{name}"
    with _locked(base / f"shared-{name}.lock"):
        done = folder / ".done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
