"""Where results go, decided before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pikfix.cli.plan import make_plan
from pikfix.cli.problems import UsageError
from pikfix.photos.recognize import suffixes


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Make files by their names and go to their folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())

    return make


def planned(names, out, format=None, references=()):
    plan = make_plan([Path(name) for name in names], Path(out), format, references)
    assert plan.unreadable == []
    return {str(job.photo): (str(job.output), job.format) for job in plan.jobs}


def test_folders_are_mirrored(photos):
    photos(
        "in/a.jpg", "in/b/c.PNG", "in/b/d/e.tiff", "in/notes.txt", "in/.hidden.jpg", "in/.x/y.jpg"
    )
    assert planned(["in"], "out") == {
        "in/a.jpg": ("out/a.jpg", "jpeg"),
        "in/b/c.PNG": ("out/b/c.PNG", "png"),
        "in/b/d/e.tiff": ("out/b/d/e.tiff", "tiff"),
    }


def test_results_inside_the_folder_are_not_restored_again(photos):
    photos("in/a.jpg", "in/out/a.jpg", "in/out/deep/b.jpg")
    assert planned(["in"], "in/out") == {"in/a.jpg": ("in/out/a.jpg", "jpeg")}


def test_files_go_into_the_folder_by_name(photos):
    photos("x/a.jpg", "y/b.webp", "c")
    assert planned(["x/a.jpg", "y/b.webp", "c"], "out") == {
        "x/a.jpg": ("out/a.jpg", "jpeg"),
        "y/b.webp": ("out/b.webp", "webp"),
        "c": ("out/c.png", "png"),
    }


def test_formats_that_cannot_be_written_become_png(photos):
    photos("in/a.gif", "in/b.bmp", "in/c.v2.tga")
    assert {output for output, _ in planned(["in"], "out").values()} == {
        "out/a.gif.png",
        "out/b.bmp.png",
        "out/c.v2.tga.png",
    }


def test_a_format_changes_the_suffix_only_where_it_must(photos):
    photos("in/a.jpg", "in/b.JPEG", "in/c.png")
    assert planned(["in"], "out", "jpeg") == {
        "in/a.jpg": ("out/a.jpg", "jpeg"),
        "in/b.JPEG": ("out/b.JPEG", "jpeg"),
        "in/c.png": ("out/c.png.jpg", "jpeg"),
    }


def test_one_photo_to_one_file(photos):
    photos("a.jpg")
    assert planned(["a.jpg"], "b.png") == {"a.jpg": ("b.png", "png")}
    assert planned(["a.jpg"], "new/folder") == {"a.jpg": ("new/folder/a.jpg", "jpeg")}
    Path("dir.png").mkdir()
    assert planned(["a.jpg"], "dir.png") == {"a.jpg": ("dir.png/a.jpg", "jpeg")}


@pytest.mark.parametrize(
    ("names", "out", "format", "said"),
    [
        (["a.jpg"], "b.png", "jpeg", "contradict"),
        (["a.jpg"], "b.gif", None, "cannot write .gif"),
        (["a.jpg"], "a.jpg", None, "replace an input"),
        (["a.jpg"], ".", None, "replace an input"),
        (["a.jpg"], "./in/..", None, "replace an input"),
        (["in"], "in", None, "replace an input"),
        (["a.jpg", "b.jpg"], "c.jpg", None, "one picture"),
        (["in"], "c.jpg", None, "one picture"),
        (["a.jpg", "b.jpg"], "notes", None, "is a file"),
        (["in"], "notes", None, "is a file"),
        (["a.jpg", "in"], "out", None, "would both become out/a.jpg"),
        (["same"], "out", None, "would both become out/p.gif.png"),
        (["a.jpg", "in", "same", "more"], "out", None, "out/a.jpg; .*all become out/p.gif.png"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(photos, names, out, format, said):
    photos("a.jpg", "b.jpg", "notes", "in/a.jpg", "in/b.jpg", "same/p.gif", "same/p.gif.png")
    photos("more/p.gif")
    with pytest.raises(UsageError, match=said):
        planned(names, out, format)


def test_a_reference_is_not_replaced(photos):
    photos("a.jpg", "refs/a.jpg")
    with pytest.raises(UsageError, match="replace an input"):
        planned(["a.jpg"], "refs", references=[Path("refs/a.jpg")])


def test_an_input_is_not_replaced_through_a_link(photos):
    photos("in/a.jpg")
    Path("out").symlink_to("in", target_is_directory=True)
    with pytest.raises(UsageError, match="replace an input"):
        planned(["in/a.jpg"], "out")


def test_a_photo_named_twice_is_restored_once(photos):
    photos("in/a.jpg")
    assert len(planned(["in", "in/a.jpg", "./in/../in/a.jpg"], "out")) == 1


def test_what_cannot_be_read_is_kept_with_its_reason(photos):
    photos("a.jpg")
    plan = make_plan([Path("a.jpg"), Path("gone.jpg")], Path("out"), None)
    assert [job.photo for job in plan.jobs] == [Path("a.jpg")]
    assert plan.unreadable == [(Path("gone.jpg"), "No such file or directory")]
    assert make_plan([Path("gone.jpg")], Path("b.jpg"), None).unreadable != []


_NAMES = st.lists(
    st.tuples(
        st.sampled_from(["", "x/", "x/y/", "z/"]),
        st.sampled_from("abc"),
        st.sampled_from([".jpg", ".JPG", ".png", ".gif", ".bmp", ".tif", ".webp", ".jpeg"]),
    ).map("".join),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(names=_NAMES, format=st.sampled_from([None, "jpeg", "png", "tiff", "webp"]))
def test_every_plan_gives_every_photo_a_result_of_its_own(tmp_path_factory, names, format):
    folder = tmp_path_factory.mktemp("plan")
    for name in names:
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).touch()
    try:
        plan = make_plan([folder / "in"], folder / "out", format)
    except UsageError:
        pytest.fail("no two of these names can clash")
    assert {str(job.photo.relative_to(folder / "in")) for job in plan.jobs} == set(names)
    outputs = [job.output for job in plan.jobs]
    assert len(set(outputs)) == len(outputs)
    for job in plan.jobs:
        # Same folder, same name, perhaps a suffix more: whatever else is in the folder.
        result, photo = job.output.relative_to(folder / "out"), job.photo.relative_to(folder / "in")
        assert result == photo or str(result).rpartition(".")[0] == str(photo)
        (alone,) = make_plan([folder / "in" / photo], folder / "out", format).jobs
        assert alone.output.name == job.output.name


def picture(path, format, size=(16, 12)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 90).save(path, format)


def test_a_folder_is_searched_for_everything_that_can_be_read(photos):
    """By suffix in any case, and by the first bytes where the suffix says nothing."""
    photos(
        *(
            f"in/a.{suffix}"
            for suffix in (
                *(
                    "avif",
                    "PSD",
                    "jpx",
                    "j2k",
                    "dib",
                    "pcx",
                    "qoi",
                    "sgi",
                    "jfif",
                    "jpe",
                    "TIFF",
                    "apng",
                ),
                *("pbm", "pfm", "ras", "GIF"),
            )
        )
    )
    found = {
        "in/scan": "JPEG",
        "in/scan.001": "TIFF",
        "in/bitmap": "BMP",
        "in/map": "PPM",
        "in/photo.jpg~": "WEBP",
        "in/x/album.mpo": "JPEG",
    }
    for name, format in found.items():
        picture(name, format)
    plan = make_plan([Path("in")], Path("out"), None)
    assert {str(job.photo) for job in plan.jobs} == {
        *(str(path) for path in Path("in").glob("a.*")),
        *found,
    }
    assert len(plan.jobs) == 22
    assert plan.describe_left_out() == ""


def test_the_rest_is_counted(photos):
    photos("in/a.jpg", "in/n.txt", "in/b/N.TXT", "in/v.mp4", "in/Thumbs.db", "in/.DS_Store")
    photos("in/a.xmp", "in/a.json", "in/P1 notes", "in/BMW", "in/.cache/b.jpg", "x/c.jpg")
    # Begin like a picture, and are none to restore.
    picture("in/a.thm", "JPEG")
    picture("in/a.nef", "TIFF")
    os.mkfifo("in/pipe")
    Path("in/gone").symlink_to("nowhere")
    Path("in/link").symlink_to("../x", target_is_directory=True)
    plan = make_plan([Path("in")], Path("out"), None)
    assert [str(job.photo) for job in plan.jobs] == ["in/a.jpg"]
    assert plan.describe_left_out() == (
        "14 files left out: 2 .txt, 2 hidden, 2 special, 2 without suffix, 1 .db, 1 .json, 1 .mp4, "
        "1 .nef, 1 .thm, 1 .xmp; a link to a folder not followed"
    )


def test_suffixes_are_those_that_are_decoded():
    found = suffixes()
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".avif", ".psd", ".jpx"} <= found
    assert {".dib", ".pcx", ".qoi", ".sgi", ".bmp", ".webp", ".png", ".jp2"} <= found
    # Pillow reads these, and photos are not sent so: see FORMATS.
    assert not {".pdf", ".eps", ".ico", ".mpg", ".h5", ".txt", ".json", ".xmp"} & found
