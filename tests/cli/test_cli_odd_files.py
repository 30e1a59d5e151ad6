"""Pipes, sockets and links to nothing among the photos: named, counted, never waited for."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from pathlib import Path

import pytest
from odd_files import make_odd_files
from results import pictures

from pikfix.cli import runner as runner_module
from pikfix.cli.plan import Job
from pikfix.cli.runner import Run, Settings
from pikfix.client import AsyncPikFixClient


def test_restore_names_and_counts_them(restore, picture, tmp_path):
    picture(tmp_path / "in/a.jpg")
    odd = make_odd_files(tmp_path / "in")
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    said = {one["photo"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert said.pop(str(tmp_path / "in/a.jpg"))["status"] == "restored"
    assert len(said) == len(odd)
    for name, reason in odd.items():
        one = said[str(tmp_path / "in" / name)]
        assert (one["status"], one["output"]) == ("failed", None)
        assert one["error"]["message"].startswith(reason)
        assert f"{tmp_path / 'in' / name}: {reason}" in done.stderr
    assert f"1 restored, {len(odd)} failed" in done.stderr
    assert pictures(tmp_path / "out") == ["a.jpg"]


@pytest.mark.parametrize("name", ["pipe.jpg", "device.png", "gone.jpg", "round.tif"])
def test_one_by_its_name(restore, picture, tmp_path, name):
    odd = make_odd_files(tmp_path / "in")
    done = restore(tmp_path / "in" / name, "-o", tmp_path / "out.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{tmp_path / 'in' / name}: {odd[name]}")
    assert not (tmp_path / "out.png").exists()

    photo = picture(tmp_path / "a.jpg")
    done = restore(photo, "-o", tmp_path / "out.png", "--reference", tmp_path / "in" / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pikfix: {tmp_path / 'in' / name}: {odd[name]}")


def test_folder_with_a_pictures_name_is_searched(restore, picture, tmp_path):
    picture(tmp_path / "in/album.jpg/a.jpg")
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/album.jpg/a.jpg").is_file()
    photo = tmp_path / "in/album.jpg/a.jpg"
    done = restore(photo, "-o", tmp_path / "b.jpg", "--reference", tmp_path / "in/album.jpg")
    assert done.returncode == 1
    assert "in/album.jpg: a folder, not a file with a picture" in done.stderr


def test_degrade_names_them(pikfix, picture, tmp_path):
    picture(tmp_path / "in/a.png", size=(96, 96))
    odd = make_odd_files(tmp_path / "in")
    done = pikfix("degrade", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert (tmp_path / "out/a.png").is_file()
    for name, reason in odd.items():
        assert f"{tmp_path / 'in' / name}: {reason}" in done.stderr


def test_a_disk_that_does_not_answer_does_not_keep_a_signal(tmp_path, monkeypatch):
    """The read never returns; SIGTERM ends the run at once all the same."""
    reading, never = threading.Event(), threading.Event()

    def read(_path: Path) -> bytes:
        reading.set()
        never.wait()
        return b""

    monkeypatch.setattr(runner_module, "read_picture_file", read)
    outcomes = []
    run = Run(Settings(references=lambda _photo: ()), outcomes.append)
    job = Job(tmp_path / "a.jpg", tmp_path / "b.jpg", "jpeg")

    async def work() -> None:
        async with AsyncPikFixClient("127.0.0.1:1") as client:
            await run.over([job], client)

    def end() -> None:
        assert reading.wait(10)
        signal.raise_signal(signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    start = time.monotonic()
    try:
        asyncio.run(work())
    finally:
        never.set()
        ending.join()
    assert time.monotonic() - start < 5
    assert run.interrupted
    assert [one.status for one in outcomes] == ["unfinished"]
