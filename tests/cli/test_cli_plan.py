"""Where results go, decided before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikfix.cli.plan import make_plan
from pikfix.cli.problems import UsageError


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
        "out/a.png",
        "out/b.png",
        "out/c.v2.png",
    }


def test_a_format_changes_the_suffix_only_where_it_must(photos):
    photos("in/a.jpg", "in/b.JPEG", "in/c.png")
    assert planned(["in"], "out", "jpeg") == {
        "in/a.jpg": ("out/a.jpg", "jpeg"),
        "in/b.JPEG": ("out/b.JPEG", "jpeg"),
        "in/c.png": ("out/c.jpg", "jpeg"),
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
        (["same"], "out", "png", "would both become out/p.png"),
        (["same"], "out", None, "would both become out/p.png"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(photos, names, out, format, said):
    photos("a.jpg", "b.jpg", "notes", "in/a.jpg", "in/b.jpg", "same/p.gif", "same/p.png")
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
        # Only where two photos of one folder share a stem and end up in one format.
        stems = [name.rpartition(".")[0] for name in names]
        assert len(set(stems)) < len(stems)
        return
    assert {str(job.photo.relative_to(folder / "in")) for job in plan.jobs} == set(names)
    outputs = [job.output for job in plan.jobs]
    assert len(set(outputs)) == len(outputs)
    for job in plan.jobs:
        # Same folder, same stem: a user finds the result beside the photo's name.
        assert job.output.relative_to(folder / "out").with_suffix("") == job.photo.relative_to(
            folder / "in"
        ).with_suffix("")
