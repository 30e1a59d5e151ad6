"""The bound on photos that a server works on, as the processes of its steps share it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pikfix.photos import PhotoError
from pikfix.photos.in_flight import LONGEST_SECONDS, InFlight


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
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = InFlight.of_this_server()
    mine.admit(1, limit=1)
    code = (
        "import tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from pikfix.photos.in_flight import InFlight\n"
        "places = InFlight.of_this_server(); print(places.admit(1, limit=1), places.path)"
    )
    # Its parent is this process, not this process's.
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[0] ")
    gone = tmp_path / f"pikfix-in-flight-{os.getuid()}-4194304-1"  # above any process number
    gone.touch()
    mine.remove()
    assert [path.name for path in tmp_path.iterdir()] == [Path(done.stdout.split()[1]).name]
