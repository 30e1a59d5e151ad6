"""Folders of photos from scikit-image, and networks whose results are known beforehand."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "chelsea", "coffee")


class FakeModel:
    """Restores nothing; colours a photo evenly with the mean colour of its references.

    Args:
        colourless: give ab = 0 instead.
    """

    def __init__(self, colourless=False):
        self.colourless = colourless
        self.reference_counts = []

    def restored(self, photo_l):
        return photo_l

    def similarity(self, working_l, reference_lab):
        self.reference_counts.append(reference_lab.shape[1])
        mean = reference_lab[:, :, 1:].mean(dim=(1, 3, 4))
        return (mean,) * 4, (mean[:, :1],) * 4

    def colorization(self, working_l, warped, confidence):
        size = (-1, -1, *working_l.shape[-2:])
        ab = warped[0][:, :, None, None].expand(*size)
        return torch.zeros_like(ab) if self.colourless else ab


def save(pixels, path):
    """Write a photo with a short side of 270."""
    photo = Image.fromarray(pixels)
    factor = 270 / min(photo.size)
    photo.resize((round(photo.width * factor), round(photo.height * factor))).save(path)


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def colourless():
    return FakeModel(colourless=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        save(getattr(data, name)(), folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """Other photos, a copy of one photo under another name, a grey one and a broken file."""
    folder = tmp_path_factory.mktemp("references")
    save(data.retina(), folder / "retina.png")
    save(data.rocket(), folder / "rocket.png")
    save(data.astronaut(), folder / "copy_of_astronaut.png")
    save(data.camera(), folder / "camera.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder
