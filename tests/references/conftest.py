"""A folder of colour pictures cut from the bundled samples, and a small seeded backbone."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pikfix.references.builder import build_library
from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.pikfix.networks import PRESETS, PikFix

SIDE = 150


@pytest.fixture(scope="session")
def samples():
    """Colour crops by name, three of each sample, at places that are neither dark nor flat."""
    places = {
        "astronaut": ((0, 130), (180, 20), (350, 200)),
        "chelsea": ((0, 0), (130, 150), (20, 290)),
        "coffee": ((0, 150), (150, 300), (240, 60)),
        "retina": ((100, 500), (600, 100), (640, 1050)),
        "rocket": ((0, 0), (160, 250), (270, 400)),
        "immunohistochemistry": ((0, 0), (180, 180), (350, 350)),
    }
    crops = {}
    for source, corners in places.items():
        picture = getattr(data, source)()
        for number, (top, left) in enumerate(corners):
            cut = picture[top : top + SIDE, left : left + SIDE]
            crops[f"{source}_{number}.png"] = np.ascontiguousarray(cut)
    return crops


TINY = dataclasses.replace(
    PRESETS["compact"], name="tiny", backbone_blocks=(1, 1, 1, 1), backbone_width=8
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Write a small checkpoint with random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("checkpoint") / "seeded.safetensors"
    save_checkpoint(PikFix(TINY), path)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory):
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("checkpoint") / "other.safetensors"
    save_checkpoint(PikFix(TINY), path)
    return path


@pytest.fixture
def pictures(tmp_path, samples):
    """Write the samples, one of them in a sub-folder, beside what is no reference."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name, pixels in samples.items():
        place = "deeper/" if name == "coffee_1.png" else ""
        Image.fromarray(pixels).save(folder / f"{place}{name}", compress_level=1)
    Image.fromarray(data.camera()[:SIDE, :SIDE]).save(folder / "grey.png")
    sepia = data.camera()[:SIDE, :SIDE, None] / 255.0 * np.array([250.0, 225.0, 190.0])
    Image.fromarray(np.rint(sepia).astype(np.uint8)).save(folder / "sepia.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "notes.txt").write_text("no picture by its name")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory, samples, checkpoint):
    """Build one library for tests that only read it: (library, pictures, what the build did)."""
    root = tmp_path_factory.mktemp("built")
    folder = root / "pictures"
    folder.mkdir()
    for name, pixels in samples.items():
        Image.fromarray(pixels).save(folder / name, compress_level=1)
    result = build_library(folder, root / "library", backbone=checkpoint)
    return root / "library", folder, result


@pytest.fixture
def library(tmp_path, built):
    """Copy the built library, its pictures where they were, to be damaged."""
    source, folder, _ = built
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "pictures").symlink_to(folder)
    return Path(shutil.copytree(source, tmp_path / "copy" / "library"))


@pytest.fixture(scope="session")
def save():
    def encode(image, name="PNG", **settings):
        file = io.BytesIO()
        image.save(file, name, **settings)
        return file.getvalue()

    return encode
