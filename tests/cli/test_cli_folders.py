"""Every command that takes a folder finds the same pictures in it, reads them, counts the rest."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pikfix.cli.plan import make_plan
from pikfix.evaluation.pictures import find_pictures, load_resized
from pikfix.references.builder import _find
from pikfix.references.pictures import read_picture
from pikfix.training.photo_store import open_photos

# Name -> Pillow's format; lossless ones are compared to the pixel.
PICTURES = {
    "a.jpg": "JPEG",
    "b.jfif": "JPEG",
    "c.PNG": "PNG",
    "d.tiff": "TIFF",
    "e.webp": "WEBP",
    "f.bmp": "BMP",
    "g.gif": "GIF",
    "h.jp2": "JPEG2000",
    "i.avif": "AVIF",
    "j.tga": "TGA",
    "k.qoi": "QOI",
    "l.pcx": "PCX",
    "sub/m.ppm": "PPM",
    "sub/no suffix": "PNG",
    "sub/n.jpg~": "JPEG",
}
EXACT = {"c.PNG", "d.tiff", "f.bmp", "j.tga", "k.qoi", "l.pcx", "sub/m.ppm", "sub/no suffix"}
COUNTED = "4 files left out: 2 .txt, 1 .mp4, 1 hidden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    image = Image.fromarray(data.astronaut()[:128, 160:320])
    for name, kind in PICTURES.items():
        image.save(folder / name, kind)
    for name in ("a.txt", "sub/b.TXT", "c.mp4", ".d.jpg"):
        (folder / name).write_text("no picture")
    return folder


def relative(paths, folder):
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_restore_train_evaluate_and_build_find_the_same(folder, tmp_path):
    told = []
    plan = make_plan([folder], tmp_path / "out", None)
    store = open_photos(folder, 96)
    files, others = _find(folder, tmp_path / "library")
    assert relative([job.photo for job in plan.jobs], folder) == sorted(PICTURES)
    assert relative(find_pictures(folder, told.append), folder) == sorted(PICTURES)
    assert relative(files.values(), folder) == sorted(PICTURES)
    assert (store.names, store.skipped) == (sorted(PICTURES), [])
    assert plan.describe_left_out() == COUNTED
    assert told == store.others == others == [COUNTED]


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_found_is_read(folder, name):
    expected = load_resized(folder / "c.PNG")
    seen = load_resized(folder / name)
    assert seen.shape == expected.shape == (3, 256, 320)
    tolerance = 1e-6 if name in EXACT else 0.04  # a palette, loss
    assert float((seen - expected).abs().mean()) <= tolerance
    luminance = read_picture(folder / name).luminance - read_picture(folder / "c.PNG").luminance
    assert float(np.abs(luminance).mean()) <= 2 * tolerance


def test_photos_are_converted_to_srgb_for_training_and_measuring_as_for_restoring(tmp_path):
    """Pixels without their profile would teach other colours than those that are seen."""
    from PIL import ImageCms

    linear = Image.fromarray(data.astronaut()[:128, 160:320]).convert("CMYK")
    linear.save(tmp_path / "press.tif")
    grey = Image.fromarray(data.astronaut()[:128, 160:320])
    lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    ImageCms.applyTransform(grey, lab).save(tmp_path / "lab.tif")
    expected = np.asarray(grey).astype(float)
    seen = open_photos(tmp_path, 128)
    assert seen.names == ["lab.tif", "press.tif"]
    assert np.abs(seen[0].astype(float) - expected).mean() < 1.5
