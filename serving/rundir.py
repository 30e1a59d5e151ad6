"""A server run's private folder and its /dev/shm regions, removed even after a crash.

The python backend opens one /dev/shm region per model instance and forgets them when it is
killed. Every run therefore gets a prefix of its own for its regions and a folder that records
the prefix and holds a lock. The lock is inherited by the server and its stubs, so it is free
exactly when none of them lives, in any PID namespace; the next start sweeps such folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from pikfix.serving.errors import ServingError
from pikfix.serving.links import is_plain
from pikfix.serving.preflight import SHM

FOLDER_PREFIX = "pikfix-tritonserver-"
_PREFIX_FILE = "shm-region-prefix"
_PREFIX = re.compile(r"pikfix-[0-9a-f]{12}-")
_UNFINISHED_AFTER_S = 3600.0


def base_folders() -> list[Path]:
    """Where run folders may lie, best first.

    The temporary folder, the user's cache, then what every system has: the first two are the
    user's to name, and only a plain path (see `links`) will do.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):  # no temporary folder can be written to
        found.append(Path(tempfile.gettempdir()))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):  # no home folder
        found.append(Path(cache).expanduser() / "pikfix")
    found += [Path("/tmp"), Path("/var/tmp"), Path(f"/run/user/{os.geteuid()}"), SHM]
    return list(dict.fromkeys(folder.absolute() for folder in found))


def _is_usable(folder: Path) -> bool:
    if not is_plain(folder):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK) and not (
            os.statvfs(folder).f_flag & os.ST_NOEXEC
        )
    except OSError:
        return False


def regions(prefix: str, shm: Path = SHM) -> list[Path]:
    """The /dev/shm regions of one run."""
    return sorted(shm.glob(f"{prefix}*"))


def remove_regions(prefix: str, shm: Path = SHM) -> int:
    """Remove a run's regions; how many there were. A prefix that is not ours is refused."""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} is not the prefix of a pikfix server run")
    found = regions(prefix, shm)
    for region in found:
        with contextlib.suppress(FileNotFoundError):
            region.unlink()
    return len(found)


def _make_folder(bases: list[Path]) -> Path:
    reason = "read-only, noexec, or of a name with blanks or signs"
    for base in bases:
        if _is_usable(base):
            try:
                return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))
            except OSError as error:  # full, or out of inodes
                reason = error.strerror or str(error)
    tried = ", ".join(map(str, bases))
    raise ServingError(
        f"no folder to start from: {tried} cannot be used ({reason}); set TMPDIR to one that can "
        "be written to and executed from, with a plain name"
    )


class RunFolder:
    """The locked private folder of one run; a context manager that removes all it stands for."""

    def __init__(self, base: Path | None = None):
        self.path = _make_folder(base_folders() if base is None else [base])
        self.shm_prefix = f"pikfix-{secrets.token_hex(6)}-"
        self.lock_fd = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
        # A sweep takes the folder for a finished run only once this file is there, and by then
        # the lock is held.
        (self.path / _PREFIX_FILE).write_text(self.shm_prefix)

    def remove(self) -> None:
        """Remove the run's regions and the folder."""
        remove_regions(self.shm_prefix)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock_fd)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def sweep(bases: list[Path] | None = None, shm: Path = SHM) -> int:
    """Remove what crashed runs of this user left behind; how many runs that were."""
    swept = 0
    for base in base_folders() if bases is None else bases:
        for folder in base.glob(f"{FOLDER_PREFIX}*"):
            with contextlib.suppress(OSError):
                swept += _sweep_one(folder, shm)
    return swept


def _sweep_one(folder: Path, shm: Path) -> bool:
    status = folder.lstat()
    if status.st_uid != os.geteuid() or not folder.is_dir() or folder.is_symlink():
        return False
    record = folder / _PREFIX_FILE
    if not record.is_file():
        # Either it is being made right now, or its maker died in between.
        if time.time() - status.st_mtime > _UNFINISHED_AFTER_S:
            shutil.rmtree(folder)
            return True
        return False
    with (folder / "lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        prefix = record.read_text()
        if _PREFIX.fullmatch(prefix):
            remove_regions(prefix, shm)
        shutil.rmtree(folder)
    return True
