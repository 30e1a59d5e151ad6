"""Borders, text and drawings on their way through both python steps.

Between the steps stands a network that changes every pixel: what comes back as it was has passed
it by.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from outside_photos import bordered, drawing, photo, text_page
from PIL import Image

MARGINS = (30, 25, 40, 35)
INSIDE = (slice(30, 270), slice(25, 325))


@pytest.fixture
def restore(load, text, save):
    """Send pictures as one request: [(pixels of the result, report), ...]."""

    def run(*pictures, options=None, reference=None, mask=None, side=128):
        inputs = {"photo": text([save(picture) for picture in pictures])}
        if options is not None:
            inputs["options"] = text([json.dumps(options).encode()] * len(pictures))
        if reference is not None:
            inputs["reference"] = text([save(reference)] * len(pictures))
        if mask is not None:
            inputs["mask"] = text([save(mask)] * len(pictures))
        (decoded,) = load("decode_photo").run(inputs)
        light = decoded["photo_l"]
        run.shape = light.shape
        rows = len(pictures)
        ab = np.broadcast_to(
            np.array([0.2, -0.3], np.float32)[:, None, None], (rows, 2, side, side)
        )
        (answer,) = load("encode_photo").run(
            {
                "restored_l": (light * np.float32(0.7) + np.float32(0.1)),
                "ab": np.ascontiguousarray(ab),
                "photo_info": decoded["photo_info"],
            }
        )
        results = [np.asarray(Image.open(io.BytesIO(data))) for (data,) in answer["result"]]
        return list(zip(results, map(json.loads, answer["report"][:, 0]), strict=True))

    return run


@pytest.mark.parametrize(("tone", "noise"), [(247, 0.0), (228, 3.0), (6, 0.0)])
def test_border_is_bitwise_the_same_and_the_inside_as_if_alone(restore, tone, noise):
    inside = (40 + photo() * 0.6).astype(np.uint8)
    picture = bordered(inside, MARGINS, tone, noise)
    ((result, report),) = restore(picture)
    assert report["photo"]["content"] == "photo"
    assert report["photo"]["rectangle"] == [30, 25, 270, 325]
    assert "only the photo within was restored" in " ".join(report["warnings"])
    assert (report["result"]["height"], report["result"]["width"]) == picture.shape
    border = np.ones(picture.shape, bool)
    border[INSIDE] = False
    assert np.array_equal(result[border], picture[border])
    ((alone, _),) = restore(inside)
    assert np.array_equal(result[INSIDE], alone)
    assert not np.array_equal(alone, inside)


def test_a_mask_changes_nothing_of_the_border(restore):
    picture = bordered((40 + photo() * 0.6).astype(np.uint8), MARGINS)
    mask = np.zeros_like(picture)
    mask[10:60, 40:90] = 255
    ((unmarked, _),) = restore(picture)
    ((result, _),) = restore(picture, mask=mask)
    border = np.ones(picture.shape, bool)
    border[INSIDE] = False
    assert np.array_equal(result[border], picture[border])
    assert not np.array_equal(result[30:60, 40:90], unmarked[30:60, 40:90])


def test_coloured_result_keeps_the_borders_own_colours(restore):
    inside = np.repeat((40 + photo() * 0.6).astype(np.uint8)[..., None], 3, axis=2)
    picture = bordered(inside, MARGINS)
    picture[..., 2] = np.where(picture[..., 2] == 247, 215, picture[..., 2])  # cream paper
    reference = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    ((result, report),) = restore(picture, reference=reference)
    assert report["colorized"]
    border = np.ones(picture.shape[:2], bool)
    border[INSIDE] = False
    assert np.array_equal(result[border], picture[border])
    ((alone, _),) = restore(inside, reference=reference)
    assert np.array_equal(result[INSIDE], alone)
    # A grey result is grey throughout, the paper in its own luminance.
    ((grey, _),) = restore(picture, options={"color": False})
    assert grey.ndim == 2
    expected = np.asarray(Image.fromarray(picture).convert("L"), dtype=int)
    assert np.abs(grey[border].astype(int) - expected[border]).max() <= 2


@pytest.mark.parametrize(
    "picture",
    [text_page(), drawing(), np.stack([text_page(ink=60), text_page(), text_page()], axis=2)],
    ids=["text", "drawing", "blue ink"],
)
def test_graphic_comes_back_as_it_was(restore, picture):
    reference = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    ((result, report),) = restore(picture, reference=reference)
    assert np.array_equal(result, picture)
    assert report["photo"]["content"] == "graphic"
    assert report["colorized"] is False
    assert report["references"] == []
    assert report["digital_source_type"] is None  # nothing was done to it
    assert report["warnings"] == [
        'looks like text or a drawing: left as it is; send {"force_photo": true} (--force-photo) '
        "to restore it all the same"
    ]
    assert restore.shape == (1, 1, 128, 128)  # the networks get a speck


@pytest.mark.parametrize(
    "picture", [text_page(), bordered(photo(), MARGINS)], ids=["text", "border"]
)
def test_force_photo_restores_everything(restore, picture):
    ((result, report),) = restore(picture, options={"force_photo": True})
    assert report["photo"]["content"] == "photo"
    assert report["photo"]["rectangle"] is None
    assert not any("left as it is" in warning for warning in report["warnings"])
    assert (result != picture).mean() > 0.9


def test_kinds_mixed_in_one_request(restore):
    """Batches of different parts share one padded shape."""
    pictures = [photo(), bordered(photo(), MARGINS), text_page(600, 400, 16)]
    together = restore(*pictures)
    assert restore.shape == (3, 1, 256, 384)
    for picture, (result, report) in zip(pictures, together, strict=True):
        ((alone, expected),) = restore(picture)
        assert np.array_equal(result, alone)
        assert report["photo"] == expected["photo"]
        assert report["warnings"] == expected["warnings"]


def test_sixteen_bits_are_kept(restore, load, text):
    picture = bordered(photo(), MARGINS).astype(np.uint16) * 257 - 100
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    (decoded,) = load("decode_photo").run({"photo": text([file.getvalue()])})
    (answer,) = load("encode_photo").run(
        {
            "restored_l": decoded["photo_l"],
            "ab": np.zeros((1, 2, 32, 32), np.float32),
            "photo_info": decoded["photo_info"],
        }
    )
    result = np.asarray(Image.open(io.BytesIO(answer["result"][0, 0])))
    border = np.ones(picture.shape, bool)
    border[INSIDE] = False
    assert np.array_equal(result[border], picture[border])
    assert np.abs(result.astype(int) - picture).max() <= 2


def test_option_of_another_type_is_refused(load, text, save):
    (answer,) = load("decode_photo").run(
        {"photo": text([save(photo())]), "options": text([b'{"force_photo": 1}'])}
    )
    assert "force_photo must be true or false" in answer.message()
