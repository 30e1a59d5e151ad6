"""Reading a picture file never waits, and never reads what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from odd_files import make_odd_files

from pikfix.photos import files as files_module
from pikfix.photos import open_picture, read_picture_file, why_unreadable


def test_what_is_no_regular_file_is_named_at_once(tmp_path):
    odd = make_odd_files(tmp_path)
    for name, reason in odd.items():
        with pytest.raises(OSError) as error:
            read_picture_file(tmp_path / name)
        assert str(error.value.strerror).startswith(reason), name
        assert error.value.filename == str(tmp_path / name)
        assert why_unreadable(tmp_path / name) == error.value.strerror
    with pytest.raises(OSError, match="a folder, not a file with a picture"):
        open_picture(tmp_path)


def test_regular_files_are_read_whole(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"", b"\0\0", b"x" * 70_000, b"\0" * 100 + b"x" * 5000):
        path.write_bytes(data)
        assert read_picture_file(path) == data
        assert read_picture_file(str(path)) == data
        assert why_unreadable(path) is None
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_picture_file(link) == data
    with open_picture(path) as file:
        assert file.read(101) == data[:101]


def test_file_without_a_size_is_read_up_to_the_limit(monkeypatch):
    """As under /proc: its size says 0."""
    path = Path("/proc/self/maps")
    assert path.stat().st_size == 0
    assert b"python" in read_picture_file(path)
    monkeypatch.setattr(files_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(OSError, match="larger than"):
        read_picture_file(path)


def test_pipe_that_takes_a_files_place_does_not_block(tmp_path, monkeypatch):
    """Exchanged between the look and the opening."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    real = os.open

    def exchange(name, flags, *more):
        path.unlink()
        os.mkfifo(path)
        return real(name, flags, *more)

    monkeypatch.setattr(files_module.os, "open", exchange)
    with pytest.raises(OSError, match="a named pipe"):
        open_picture(path)


def test_no_descriptor_is_left_open(tmp_path):
    odd = make_odd_files(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in odd:
        why_unreadable(tmp_path / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    assert why_unreadable(path) == "Permission denied"
