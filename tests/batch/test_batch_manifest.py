"""Which photos a batch has, whose turn they are, and where results go."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikfix.batch.manifest import Manifest, ManifestError, Shard, from_folder, from_listing
from pikfix.cli.plan import make_plan


@pytest.fixture
def files(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() + b"\n")

    return make


def test_a_folder_holds_the_photos_that_restore_finds(files, tmp_path):
    """The same photos get the same results as from `pikfix restore`."""
    files("in/a.jpg", "in/b/c.PNG", "in/b/d.bmp", "in/n.txt", "in/.x/y.jpg", "in/out/a.jpg")
    out = tmp_path / "in/out"
    manifest = from_folder(tmp_path / "in", out)
    assert manifest.names == ["a.jpg", "b/c.PNG", "b/d.bmp"]
    assert "1 .txt" in manifest.describe_left_out()
    plan = make_plan([tmp_path / "in"], out, None)
    assert [manifest.path(name) for name in manifest.names] == [str(j.photo) for j in plan.jobs]


@pytest.mark.parametrize("given", ["", "./", "in", "in/", "./in/../in"])
def test_names_are_below_the_folder_however_it_is_given(files, tmp_path, monkeypatch, given):
    files("in/b/a.jpg")
    monkeypatch.chdir(tmp_path)
    found = from_folder(Path(given), tmp_path / "out").names
    assert found == (["b/a.jpg"] if "in" in given else ["in/b/a.jpg"])


def test_a_folder_that_cannot_be_looked_into_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError):
        from_folder(tmp_path / "gone", tmp_path / "out")


def test_a_listing(files, tmp_path):
    listing = tmp_path / "photos.txt"
    listing.write_bytes(b"a.jpg\r\n\n./b/c.png\nb//c.png\nd e.tif\n\xff.jpg\n")
    manifest = from_listing(listing)
    assert manifest.names == ["a.jpg", "b/c.png", "d e.tif", os.fsdecode(b"\xff.jpg")]
    assert manifest.path("a.jpg") == str(tmp_path / "a.jpg")
    listing.write_bytes(b"a\nb.jpg\0c.jpg\0")  # a name with a line break
    assert from_listing(listing).names == ["a\nb.jpg", "c.jpg"]


def test_a_listing_of_absolute_paths(files, tmp_path):
    listing = tmp_path / "photos.txt"
    listing.write_text(f"/scans/a.jpg\n{tmp_path}/../b.jpg\nc.jpg\n")
    manifest = from_listing(listing)
    assert manifest.root == "/"
    above = str(tmp_path.parent / "b.jpg")[1:]
    assert manifest.names == ["scans/a.jpg", above, str(tmp_path / "c.jpg")[1:]]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"../a.jpg\n", "not below the list's folder"), (b"\xff\xd8" * 4000, "line 1 is no path")],
)
def test_what_is_no_listing(tmp_path, content, said):
    listing = tmp_path / "photos.txt"
    listing.write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        from_listing(listing)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), unique=True
    ),
    st.integers(1, 9),
)
def test_every_photo_is_in_one_part(names, count):
    manifest = Manifest("", names)
    parts = [list(manifest.part(Shard(index, count))) for index in range(count)]
    assert sorted(name for part in parts for name in part) == sorted(names)


def test_parts_are_of_equal_size_and_the_same_for_ever():
    """Half-done batches rely on it: `printf a.jpg | b2sum -l 64`, a big number modulo N."""
    manifest = Manifest("", [f"box{i // 100:03}/scan_{i:06}.tif" for i in range(20_000)])
    sizes = collections.Counter(index for index in range(8) for _ in manifest.part(Shard(index, 8)))
    assert all(abs(size - 2500) < 200 for size in sizes.values())
    assert [Shard(i, 4).holds("a.jpg") for i in range(4)] == [False, True, False, False]
    assert 0xE42EAD0D7647756E % 5 == 1
    assert Shard(1, 5).holds("b/c.png")


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/0", "a/b", "1/4/2", "", "٣/4x"])
def test_wrong_parts(text):
    with pytest.raises(ValueError, match="give I/N, I from 0 to N-1"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("names", "format", "said"),
    [
        (["a.bmp", "a.bmp.png"], None, "a.bmp and a.bmp.png would both become a.bmp.png"),
        (["a.jpg", "a.jpg.png"], "png", "both become a.jpg.png"),
    ],
)
def test_results_that_clash_are_refused(tmp_path, names, format, said):
    with pytest.raises(ManifestError, match=said):
        Manifest(str(tmp_path), names).check_results(tmp_path / "out", format)


def test_results_that_would_replace_photos_are_refused(tmp_path):
    inside = Manifest(str(tmp_path / "in"), ["a.jpg", "in/a.jpg"])
    with pytest.raises(ManifestError, match="would replace the photo"):
        inside.check_results(tmp_path / "in", None)
    # OUT/in/a.jpg is both the second one's result and the first photo.
    with pytest.raises(ManifestError, match="would replace the photo"):
        inside.check_results(tmp_path, None)
    inside.check_results(tmp_path / "in" / "out", None)
    inside.check_results(tmp_path / "out", None)
    Manifest(str(tmp_path), ["a.bmp"]).check_results(tmp_path, None)


PLANNING = """
import sys
from pathlib import Path
from pikfix.batch.manifest import Shard, from_listing
manifest = from_listing(Path(sys.argv[1]))
manifest.check_results(Path(sys.argv[2]), None)
print(len(manifest.names), sum(1 for _ in manifest.part(Shard(0, 4))))
"""


def test_planning_is_light(tmp_path):
    """A tenth of a million rows in a tenth of a minute of work and of a gigabyte above imports."""
    listing = tmp_path / "rows.txt"
    rows = 100_000
    listing.write_text("".join(f"box{i // 1000:04}/scan_{i:07}.tif\n" for i in range(rows)))
    (tmp_path / "none.txt").write_text("a.jpg\n")
    costs = []
    for name in ("none.txt", "rows.txt"):
        words = [sys.executable, "-c", PLANNING, tmp_path / name, tmp_path / "out"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        said = process.stdout.read().split()
        _, _, usage = os.wait4(process.pid, 0)
        process.stdout.close()
        costs.append((usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    assert int(said[0]) == rows
    assert abs(int(said[1]) - rows / 4) < rows / 40
    seconds, mebibytes = (b - a for a, b in zip(*costs, strict=True))
    assert seconds < 6
    assert mebibytes < 100
