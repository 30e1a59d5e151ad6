"""Sidecars of `pikfix restore`, and what `pikfix inspect` says of a result."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pikfix.photos import provenance, sidecar
from pikfix.photos.search import find_pictures


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def said(path):
    return json.loads(path.with_name(path.name + ".pikfix.json").read_text())


def test_a_sidecar_tells_of_everything_that_went_in(restore, picture, tmp_path):
    photo = picture(tmp_path / "a.jpg")
    first, second = picture(tmp_path / "r1.png", seed=1), picture(tmp_path / "r2.png", seed=2)
    out = tmp_path / "out.png"
    words = ("--reference", first, "--reference", second, "--quality", "80", "--json")
    done = restore(photo, "-o", out, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sidecar"] == f"{out}.pikfix.json"
    values = said(out)
    for entry, path in [
        (values["photo"], photo),
        (values["result"], out),
        *zip(values["references"], [first, second], strict=True),
    ]:
        assert (entry["file"], entry["bytes"]) == (path.name, path.stat().st_size)
        assert entry["sha256"] == sha256(path)
    assert [one["share"] for one in values["references"]] == [0.5, 0.5]
    assert values["options"] == {
        "color": True,
        "force_color": False,
        "force_photo": False,
        "quality": 80,
        "profile": "own",
        "depth": None,
        "pages": "all",
        "keep_color": False,
        "strength": 1.0,
        "color_strength": 1.0,
        "format": "png",
    }
    assert values["software"].startswith("pikfix ")
    assert values["model"] == {"version": "1", "sha256": None}  # the fake server has no more
    assert values["colorized"] is True


def test_a_folder_and_its_sidecars_as_input(restore, picture, tmp_path):
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.jpg", seed=number)
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--jobs", "3")
    assert done.returncode == 0, done.stderr
    results = sorted((tmp_path / "out").iterdir())
    assert [one.name for one in results] == [
        f"{number}.jpg{suffix}" for number in range(3) for suffix in ("", ".pikfix.json")
    ]
    for number in range(3):
        assert said(tmp_path / f"out/{number}.jpg")["photo"]["sha256"] == sha256(
            tmp_path / f"in/{number}.jpg"
        )
    assert [one.name for one in find_pictures(tmp_path / "out").pictures] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]
    done = restore(tmp_path / "out", "-o", tmp_path / "again", "--no-sidecar")
    assert done.returncode == 0, done.stderr
    assert sorted(one.name for one in (tmp_path / "again").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_run_that_was_killed_between_sidecar_and_result_goes_on(restore, picture, tmp_path):
    picture(tmp_path / "in" / "a.jpg")
    picture(tmp_path / "in" / "b.jpg", seed=1)
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    before = said(tmp_path / "out/b.jpg")
    (tmp_path / "out/b.jpg").unlink()
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", "--quality", "50")
    assert done.returncode == 0, done.stderr
    assert "1 restored, 1 skipped" in done.stderr
    assert said(tmp_path / "out/b.jpg")["result"]["sha256"] == sha256(tmp_path / "out/b.jpg")
    assert said(tmp_path / "out/b.jpg")["options"] != before["options"]
    assert said(tmp_path / "out/a.jpg")["options"] == before["options"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_sidecar_is_never_replaced(restore, picture, tmp_path, kind):
    photo = picture(tmp_path / "in" / "a.jpg")
    place = tmp_path / "out" / "a.jpg.pikfix.json"
    place.parent.mkdir()
    if kind == "file":
        place.write_text('{"mine": 1}')
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("nothing")
    done = restore(photo, "-o", tmp_path / "out", "--overwrite")
    assert done.returncode == 1
    assert "is another file; move it, or give --no-sidecar" in done.stderr
    assert [one.name for one in (tmp_path / "out").iterdir()] == [place.name]
    done = restore(photo, "-o", tmp_path / "out", "--no-sidecar")
    assert done.returncode == 0, done.stderr
    assert kind != "file" or place.read_text() == '{"mine": 1}'


def test_a_replaced_result_keeps_no_old_sidecar(restore, picture, tmp_path):
    photo = picture(tmp_path / "in" / "a.jpg")
    assert restore(photo, "-o", tmp_path / "out").returncode == 0
    assert restore(photo, "-o", tmp_path / "out", "--overwrite", "--no-sidecar").returncode == 0
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["a.jpg"]


def test_two_files_are_written_together_or_not_at_all(tmp_path):
    from pikfix.photos import write_together

    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="b"):
        write_together([(tmp_path / "a", b"1"), (tmp_path / "b", b"2")])
    with pytest.raises(OSError, match="missing"):
        write_together([(tmp_path / "a", b"1"), (tmp_path / "missing/c", b"2")])
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


@pytest.fixture
def result(tmp_path):
    """A result as the server writes it, with its sidecar."""
    change = provenance.change_of(
        colorized=True,
        model="compact-1",
        day=datetime.date(1970, 1, 1),
    )
    about = PngImagePlugin.PngInfo()
    about.add_itxt("XML:com.adobe.xmp", provenance.marked(b"", change)[0].decode())
    path = tmp_path / "result.png"
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path, pnginfo=about)
    report = {
        "photo": {},
        "result": {},
        "references": [{"source": "library", "name": "farm.jpg", "score": 0.8, "share": 0.25}],
        "model_version": "compact-1",
        "model_sha256": "ab" * 32,
        "colorized": True,
        "mean_confidence": 0.625,
        "damaged_share": 0.0123,
        "warnings": ["a\nb"],
    }
    made = sidecar.compose(
        sidecar.File("scan.tif", b"scan"),
        sidecar.File(path.name, path.read_bytes()),
        [],
        report=report,
        options={"color": True},
        when=datetime.datetime.fromtimestamp(0, datetime.timezone.utc),
    )
    sidecar.path_beside(path).write_bytes(made)
    return path


def test_inspect_tells_a_person(pikfix, result):
    for given in (result, sidecar.path_beside(result)):
        done = pikfix("inspect", given)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        assert f"file {result}, {result.stat().st_size} bytes" in lines
        assert "picture png, 5 x 4, RGB, 8 bits" in lines
        assert (
            f"source {provenance.COMPOSITE} (a photo with parts that a trained network made up)"
            in lines
        )
        assert any(line.startswith("history 1970-01-01 edited by ") for line in lines)
        assert f"photo scan.tif, sha256 {hashlib.sha256(b'scan').hexdigest()}" in lines
        assert "reference farm.jpg, share 25.0 %, score 0.8, sha256 not known" in lines
        assert "redrawn 1.23 % of the pixels" in lines
        assert f"model compact-1, sha256 {'ab' * 32}" in lines
        assert "warning a\\nb" in lines


def test_inspect_as_json(pikfix, result):
    done = pikfix("inspect", result, "--json")
    found = json.loads(done.stdout)
    assert found["sha256"] == sha256(result)
    assert found["digital_source_type"] == provenance.COMPOSITE
    assert found["sidecar"]["damaged_share"] == 0.0123
    assert found["problems"] == []


def test_inspect_notices_a_change(pikfix, result):
    with Image.open(result) as image:
        image.load()
    image.putpixel((0, 0), (1, 2, 3))
    image.save(result)
    done = pikfix("inspect", result)
    assert done.returncode == 1
    assert "it was changed or replaced since" in done.stderr
    assert "source      not stated" in done.stdout


def test_inspect_of_other_files(pikfix, picture, tmp_path):
    plain = picture(tmp_path / "plain.jpg")
    done = pikfix("inspect", plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sidecar     none" in done.stdout
    (tmp_path / "plain.jpg.pikfix.json").write_text("[]")
    done = pikfix("inspect", plain)
    assert (done.returncode, done.stderr) == (
        1,
        f"pikfix: {plain}.pikfix.json is no sidecar of pikfix\n",
    )
    (tmp_path / "text.txt").write_text("no picture")
    for missing in (tmp_path / "text.txt", tmp_path / "missing.png", tmp_path):
        done = pikfix("inspect", missing)
        assert done.returncode == 1
        assert done.stderr.startswith(f"pikfix: {missing}: ")
        assert done.stderr.count("\n") == 1


def test_inspect_a_sidecar_whose_picture_is_gone(pikfix, result):
    shutil.copy(sidecar.path_beside(result), result.with_name("other.png.pikfix.json"))
    done = pikfix("inspect", result.with_name("other.png.pikfix.json"))
    assert done.returncode == 1
    assert "other.png" in done.stderr
