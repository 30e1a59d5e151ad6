"""`pikfix evaluate` and `pikfix degrade` as a user types them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from odd_files import make_odd_files
from PIL import Image

from pikfix.cli.main import main
from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.pikfix.networks import PikFix


@pytest.fixture(scope="module")
def checkpoint(smallest_config, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "smallest.safetensors"
    save_checkpoint(PikFix(smallest_config), path)
    return path


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_evaluate_prints_a_table_and_writes_its_files(
    call, checkpoint, photos, references, tmp_path
):
    figures, sheet = tmp_path / "figures.json", tmp_path / "sheet.png"
    words = ["evaluate", checkpoint, "--photos", photos, "--references", references]
    words += ["--protocol", "colorize", "--limit", 2, "--count", 2]
    code, out, err = call(*words, "--json", figures, "--sheet", sheet)
    assert code == 0, err
    assert "histogram match" in out
    assert "broken.jpg" in err  # named, not fatal
    written = json.loads(figures.read_text())
    assert written["count"] == 2
    assert written["checkpoint"] == str(checkpoint)
    assert f"{written['model']['psnr']:.2f}" in out
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--protocol", "colorize"], 2, "--references"),
        (["--protocol", "colours"], 2, "colours"),
        (["--protocol", "restore", "--device", "cuda"], 1, "--device cpu"),
    ],
)
def test_evaluate_says_what_is_wrong(call, checkpoint, photos, words, code, message):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    got, _, err = call("evaluate", checkpoint, "--photos", photos, *words)
    assert got == code
    assert message in err
    assert len(err.splitlines()) == 1


def test_evaluate_needs_photos_and_a_checkpoint(call, checkpoint, photos, tmp_path):
    code, _, err = call("evaluate", checkpoint, "--photos", tmp_path, "--protocol", "restore")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "no photos in" in err
    missing = tmp_path / "missing.safetensors"
    code, _, err = call("evaluate", missing, "--photos", photos, "--protocol", "restore")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "missing.safetensors" in err


def test_degrade_a_folder(call, photos, tmp_path):
    out = tmp_path / "old"
    code, stdout, err = call("degrade", photos, "-o", out, "--seed", 4, "--mask", "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert len(rows) == len(list(photos.iterdir()))
    for row in rows:
        with (
            Image.open(row["photo"]) as before,
            Image.open(row["result"]) as after,
            Image.open(row["mask"]) as mask,
        ):
            assert after.size == before.size == mask.size
            assert mask.mode == "L"
            assert not np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after))

    again = tmp_path / "again"
    other = tmp_path / "other"
    assert call("degrade", photos, "-o", again, "--seed", 4)[0] == 0
    assert call("degrade", photos, "-o", other, "--seed", 5)[0] == 0
    for path in photos.iterdir():
        assert (again / path.name).read_bytes() == (out / path.name).read_bytes()
        assert (other / path.name).read_bytes() != (out / path.name).read_bytes()


def test_degrade_one_photo_into_a_file(call, photos, tmp_path):
    target = tmp_path / "old.jpg"
    assert call("degrade", photos / "coffee.png", "-o", target, "--strength", "heavy")[0] == 0
    with Image.open(target) as picture:
        assert picture.format == "JPEG"
    before = target.read_bytes()
    code, _, err = call("degrade", photos / "coffee.png", "-o", target)
    assert code == 1
    assert "--overwrite" in err
    assert target.read_bytes() == before
    assert call("degrade", photos / "coffee.png", "-o", target, "--overwrite")[0] == 0
    assert target.read_bytes() != before


def test_degrade_names_what_it_cannot_read_and_goes_on(call, photos, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "good.png").write_bytes((photos / "coffee.png").read_bytes())
    (source / "bad.jpg").write_bytes(b"nothing")
    Image.new("RGB", (9, 40)).save(source / "tiny.png")
    code, out, err = call("degrade", source, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert "bad.jpg" in err
    assert "9 x 40" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    rows = {row["photo"].rpartition("/")[2]: row for row in map(json.loads, out.splitlines())}
    assert rows["bad.jpg"]["result"] is None
    assert rows["good.png"]["result"] is not None


def test_degrade_never_replaces_its_input(call, photos):
    before = (photos / "coffee.png").read_bytes()
    code, _, err = call("degrade", photos, "-o", photos, "--overwrite")
    assert code == 2
    assert "would replace an input" in err
    assert (photos / "coffee.png").read_bytes() == before


def test_evaluate_names_what_is_no_file(call, checkpoint, photos, references, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    odd = make_odd_files(folder)
    figures = tmp_path / "figures.json"
    words = ["evaluate", checkpoint, "--photos", folder, "--references", references]
    code, _, _ = call(*words, "--protocol", "colorize", "--json", figures)
    assert code == 0
    skipped = {one["photo"]: one["reason"] for one in json.loads(figures.read_text())["skipped"]}
    assert set(skipped) == set(odd)
    for name, reason in odd.items():
        assert skipped[name].startswith(f"cannot read {folder / name} as a picture: {reason}")


def test_calibrate_skips_what_is_no_file(call, checkpoint, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(next(photos.iterdir()), folder)
    odd = make_odd_files(folder)
    weights = tmp_path / "a.safetensors"
    shutil.copy(checkpoint, weights)
    code, out, err = call("calibrate", weights, "--photos", folder)
    assert (code, out.rpartition(": ")[2]) == (0, "measured on 1 photos\n")
    for name, reason in odd.items():
        assert f"skipped: cannot read {folder / name} as a picture: {reason}" in err
