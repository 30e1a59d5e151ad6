"""The bound on photos that a server works on, as the processes of its steps share it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pikfix.photos import PhotoError
from pikfix.photos.in_flight import LEAST_SECONDS, LONGEST_SECONDS, InFlight


@pytest.fixture
def places(tmp_path: Path) -> InFlight:
    return InFlight(tmp_path / "places")


def test_as_many_as_there_are_places_and_no_more(places: InFlight) -> None:
    assert places.admit(2, limit=3) == [0, 1]
    with pytest.raises(PhotoError, match="2 photos are being worked on, of at most 3") as caught:
        places.admit(2, limit=3)
    assert caught.value.code == "busy"
    assert places.admit(1, limit=3) == [2]  # what was refused took nothing
    places.release([1])
    assert places.admit(1, limit=3) == [1]


def test_a_request_of_more_photos_than_places_waits_for_all_of_them(places: InFlight) -> None:
    assert places.admit(8, limit=4) == [0, 1, 2, 3]
    with pytest.raises(PhotoError, match="4 photos"):
        places.admit(1, limit=4)
    places.release([0, 1, 2, 3])
    assert places.admit(9, limit=4) == [0, 1, 2, 3]


def test_what_is_lost_on_its_way_frees_its_place_in_time(
    places: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    places.admit(1, limit=2, until=now + 5)
    places.admit(1, limit=2)
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert places.admit(1, limit=2) == [0]
    monkeypatch.setattr(time, "time", lambda: now + 6 + LONGEST_SECONDS)
    assert places.admit(2, limit=2) == [0, 1]


def test_release_makes_no_file_and_survives_its_absence(places: InFlight) -> None:
    places.release([0])
    assert not places.path.exists()
    places.admit(1, limit=1)
    places.remove()
    assert not places.path.exists()
    places.remove()


def _take_and_return(path: Path, rounds: int, most: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    places = InFlight(path)
    taken = 0
    while taken < rounds:
        try:
            got = places.admit(1, limit=3)
        except PhotoError:
            continue
        taken += 1
        marker = path.with_name(f"held-{got[0]}")
        # Nobody else has this place.
        handle = os.open(marker, os.O_CREAT | os.O_EXCL)
        os.close(handle)
        marker.unlink()
        places.release(got)
    most.put(taken)


def test_processes_never_share_a_place(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done: multiprocessing.Queue[int] = context.Queue()
    path = tmp_path / "places"
    workers = [context.Process(target=_take_and_return, args=(path, 200, done)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sum(done.get() for _ in workers) == 800
    assert InFlight(path).admit(3, limit=3) == [0, 1, 2]


def test_servers_have_their_own_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine = InFlight.of_this_server()
    mine.admit(1, limit=1)
    code = (
        "from pikfix.photos.in_flight import InFlight\n"
        "places = InFlight.of_this_server(); print(places.admit(1, limit=1), places.path)"
    )
    # Its parent is this process, not this process's.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[0] ")
    gone = tmp_path / f"pikfix-in-flight-{os.getuid()}-4194304-1"  # above any process number
    gone.touch()
    mine.remove()
    assert [path.name for path in tmp_path.iterdir()] == [Path(done.stdout.split()[1]).name]


def test_what_is_lost_is_known_by_how_long_others_take(
    places: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers who give up would keep their places until their deadlines, an hour here."""
    now = time.time()
    clock = [now]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    hour = now + 3600
    places.admit(1, limit=2, until=hour)
    clock[0] += 20  # the first to come through takes 20 s
    places.release([0])
    assert places.admit(2, limit=2, until=hour) == [0, 1]
    clock[0] += 39
    with pytest.raises(PhotoError, match="2 photos"):
        places.admit(1, limit=2, until=hour)
    clock[0] += 2
    assert places.admit(2, limit=2, until=hour) == [0, 1]
    clock[0] += 60  # one that has counted as lost comes all the same, after 60 s
    places.release([0])
    assert places.admit(2, limit=2, until=hour) == [0, 1]
    clock[0] += 2 * 60 - 1
    with pytest.raises(PhotoError, match="2 photos"):
        places.admit(1, limit=2, until=hour)


def test_fast_photos_do_not_make_others_count_as_lost_at_once(
    places: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    places.admit(1, limit=1)
    clock[0] += 0.01
    places.release([0])
    places.admit(1, limit=1)
    clock[0] += LEAST_SECONDS - 1
    with pytest.raises(PhotoError, match="1 photos"):
        places.admit(1, limit=1)
    clock[0] += 2
    assert places.admit(1, limit=1) == [0]


def test_a_clock_that_is_set_back_keeps_nobody_out(
    places: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    places.admit(2, limit=2)
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert places.admit(2, limit=2) == [0, 1]


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"x", b"\x7f" * 400], ids=["NaN", "short", "huge"]
)
def test_a_file_of_something_else_keeps_nobody_out(places: InFlight, content: bytes) -> None:
    places.path.write_bytes(content)
    assert places.admit(2, limit=2) == [0, 1]
    places.release([0, 1])
    assert places.admit(2, limit=2) == [0, 1]


def _stranger(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.parent.rmdir()


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device", "no folder"])
def test_what_cannot_hold_places_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tmp").mkdir()
    places = InFlight(tmp_path / "tmp/places")
    _stranger(kind, places.path)
    start = time.monotonic()
    with pytest.raises(OSError):
        places.admit(1, limit=1)
    places.release([0])
    places.remove()
    assert time.monotonic() - start < 1
    assert not (tmp_path / "tmp/elsewhere").exists()


def test_a_lock_that_nobody_lets_go_of_is_not_waited_for(places: InFlight) -> None:
    """As that of a step which was stopped in the middle."""
    places.admit(1, limit=2)
    with places.path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        start = time.monotonic()
        with pytest.raises(OSError, match="its lock is held"):
            places.admit(1, limit=2)
        assert time.monotonic() - start < 5
    assert places.admit(1, limit=2) == [1]


@pytest.mark.parametrize("folder", ["", "/nowhere/at/all", "a\nb", 'ü, "q": 1'])
def test_places_lie_in_one_folder_whatever_the_temporary_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    made = bool(folder) and not folder.startswith("/")
    if made:
        folder = str(tmp_path / folder)
        Path(folder).mkdir()
    monkeypatch.setenv("TMPDIR", folder)
    places = InFlight.of_this_server()
    try:
        assert places.path.parent == Path(folder if made else "/tmp")
        assert places.admit(1, limit=1) == [0]
    finally:
        places.remove()


def test_without_any_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert InFlight.of_this_server().path.parent == Path("/dev/shm")
