from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from odd_files import make_odd_files
from PIL import Image
from skimage import data

from pikfix.training import photo_store
from pikfix.training.errors import TrainingError
from pikfix.training.photo_store import open_photos


@pytest.fixture
def mixed_folder(photo_folder, tmp_path):
    """Good photos among every kind of bad one."""
    folder = tmp_path / "mixed"
    shutil.copytree(photo_folder, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    good = (folder / "coffee.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (40, 300), (200, 30, 90)).save(folder / "tiny.png")
    Image.fromarray(data.camera()).save(folder / "grey.png")
    Image.fromarray(np.repeat(data.camera()[..., None], 3, 2)).save(folder / "grey_as_rgb.jpg")
    grey = data.camera().astype(np.float64)
    sepia = np.stack([grey**0.9 * 1.7, grey * 0.95, grey**1.1 * 0.5], axis=2).clip(0, 255)
    Image.fromarray(sepia.astype(np.uint8)).save(folder / "sepia.png")
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "astronaut.png").write_bytes(good)
    return folder


def test_bad_files_are_skipped_and_named(mixed_folder):
    store = open_photos(mixed_folder, 80)
    assert store.names == [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.png",
        "sub/retina.png",
    ]
    reasons = {item.name: item.reason.split(":")[0] for item in store.skipped}
    assert reasons == {
        "broken.jpg": "unreadable",
        "cut.png": "unreadable",
        "empty.png": "unreadable",
        "tiny.png": "tiny",
        "grey.png": "grey",
        "grey_as_rgb.jpg": "grey",
        "sepia.png": "grey",
    }


def test_the_short_side_is_bounded_and_small_photos_are_enlarged(photo_folder, tmp_path):
    for side in (64, 150):
        for photo in open_photos(photo_folder, side):
            assert min(photo.shape[:2]) == side
            assert photo.dtype == np.uint8
    original = np.asarray(Image.open(photo_folder / "chelsea.png").convert("RGB"))
    store = open_photos(photo_folder, min(original.shape[:2]))
    np.testing.assert_array_equal(store[store.names.index("chelsea.png")], original)


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(data.coffee()).resize((150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    store = open_photos(tmp_path, 100)
    np.testing.assert_array_equal(store[0], np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "no usable photo"])
def test_folders_without_photos(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("x")
    elif kind != "missing":
        folder.mkdir()
    if kind == "no usable photo":
        Image.fromarray(data.camera()).save(folder / "grey.png")
    with pytest.raises(TrainingError) as caught:
        open_photos(folder, 64)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_gives_the_same_photos_and_notices_changes(mixed_folder, tmp_path, monkeypatch):
    cache = tmp_path / "caches" / "photos.bin"
    plain = open_photos(mixed_folder, 80)
    written = open_photos(mixed_folder, 80, cache)
    with monkeypatch.context() as patch:
        patch.setattr(photo_store, "_decode", lambda *_: pytest.fail("decoded again"))
        read = open_photos(mixed_folder, 80, cache)
    for store in (written, read):
        assert store.names == plain.names
        assert store.skipped == plain.skipped
        assert store.fingerprint == plain.fingerprint
        for a, b in zip(store, plain, strict=True):
            np.testing.assert_array_equal(a, b)
    (mixed_folder / "rocket.png").unlink()
    assert "rocket.png" not in open_photos(mixed_folder, 80, cache).names
    cache.with_name("photos.bin.json").write_text("{")
    assert len(open_photos(mixed_folder, 80, cache)) == 4


def test_a_cache_that_does_not_fit_is_refused_and_leaves_nothing(
    photo_folder, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left"):
        open_photos(photo_folder, 80, tmp_path / "photos.bin")
    assert list(tmp_path.iterdir()) == []


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    photo_store.write_atomically(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        photo_store.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_skipped_with_its_reason(photo_folder, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(photo_folder, folder)
    odd = make_odd_files(folder)
    store = open_photos(folder, 80, cache=tmp_path / "cache")
    skipped = {one.name: one.reason for one in store.skipped}
    assert set(skipped) == set(odd)
    for name, reason in odd.items():
        assert skipped[name].startswith(f"unreadable: {reason}")
