"""Borders are found to the row, text and drawings as such, and photos are neither."""

from __future__ import annotations

import io

import numpy as np
import pytest
from outside_photos import bordered, drawing, filled_drawing, photo, text_page, turned_scan
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from pikfix.photos.domain import Content, Rectangle, find_content, photo_within
from pikfix.photos.graphics import median_of_nine
from pikfix.photos.levels import away_from, median_distance

PHOTOS = (
    *("astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass"),
    *("gravel", "hubble_deep_field", "moon", "retina", "rocket", "immunohistochemistry"),
)


def samples():
    for name in PHOTOS:
        try:
            yield name, getattr(data, name)()
        except (AttributeError, OSError, ModuleNotFoundError):  # not shipped in the wheel
            continue


def test_photos_are_photos_without_a_border():
    seen = 0
    for name, pixels in samples():
        for part in (pixels, pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2]):
            assert find_content(np.ascontiguousarray(part)) == Content(), name
            seen += 1
    assert seen >= 12


@pytest.mark.parametrize(
    "margins", [(30, 30, 30, 30), (8, 12, 60, 20), (3, 3, 3, 3), (0, 40, 0, 40)]
)
@pytest.mark.parametrize(("tone", "noise"), [(247, 0.0), (5, 0.0), (215, 3.0), (255, 1.0)])
def test_border_is_found_to_the_row(margins, tone, noise):
    # Lighter, so that the coat is not as dark as a scanner's lid.
    inside = (40 + photo() * 0.6).astype(np.uint8)
    picture = bordered(inside, margins, tone, noise)
    expected = Rectangle(margins[0], margins[1], margins[0] + 240, margins[1] + 300)
    assert find_content(picture) == Content("photo", expected)


def test_border_of_a_large_scan_is_found_to_the_row():
    inside = (40 + photo(1900, 2507) * 0.6).astype(np.uint8)
    picture = bordered(inside, (137, 151, 211, 143), 240, 2.0)
    expected = Rectangle(137, 151, 137 + 1900, 151 + 2507)
    assert find_content(picture).rectangle == expected
    colour = np.repeat(picture[..., None], 3, axis=2)
    assert find_content(colour).rectangle == expected
    assert find_content(picture.astype(np.float32) / 255).rectangle == expected


def test_caption_in_the_lower_margin_stays_outside():
    image = Image.fromarray(bordered(photo(), (30, 30, 70, 30)))
    ImageDraw.Draw(image).text(
        (60, 290), "Summer of 1931", font=ImageFont.load_default(18), fill=40
    )
    assert find_content(np.asarray(image)).rectangle == Rectangle(30, 30, 270, 330)


def test_paper_within_a_scanners_lid():
    """Two borders around each other."""
    inside = (40 + photo() * 0.6).astype(np.uint8)
    picture = bordered(bordered(inside, (20, 20, 20, 20), 240), (16, 16, 16, 16), 8)
    assert find_content(picture).rectangle == Rectangle(36, 36, 276, 336)


@pytest.mark.parametrize("degrees", [-7, -3, -1.5, 0.6, 2, 4])
@pytest.mark.parametrize("size", [(240, 300), (480, 600), (1500, 1201)])
def test_turned_photo_is_found_by_its_corners(degrees, size):
    inside = (40 + photo(*size) * 0.6).astype(np.uint8)
    scan, corners = turned_scan(inside, degrees, margin=size[0] // 6)
    content = find_content(scan)
    assert content.kind == "photo"
    # A rim of two pixels, where photo and paper mix, is left to the paper.
    assert np.abs(np.array(content.corners) - corners).max() <= 3
    # Nothing of the paper is taken for the photo, and next to nothing of the photo is left.
    whole = np.zeros(scan.shape, np.bool_)
    whole[content.rectangle.slices] = content.mask
    assert scan[whole].max() <= 200
    assert whole.sum() > size[0] * size[1] - 5 * sum(size)


@pytest.mark.parametrize("tone", [5, 128, 255])
def test_turned_photo_on_any_paper(tone):
    inside = (photo() // 8 + np.where(photo() > 128, 170, 45)).astype(np.uint8)
    scan, corners = turned_scan(inside, 3, tone=tone)
    noisy = np.clip(scan + np.random.default_rng(0).normal(0, 2, scan.shape), 0, 255)
    for picture in (scan, noisy.astype(np.uint8), np.repeat(scan[..., None], 3, 2), scan / 255.0):
        found = find_content(picture).corners
        assert found is not None
        assert np.abs(np.array(found) - corners).max() <= 3.5


def test_caption_below_a_turned_photo_stays_outside():
    scan, corners = turned_scan(photo(), 3, margin=70)
    image = Image.fromarray(scan)
    ImageDraw.Draw(image).text((90, 340), "Summer of 1931", font=ImageFont.load_default(18))
    assert np.abs(np.array(find_content(np.asarray(image)).corners) - corners).max() <= 3


def test_what_a_turned_photo_leaves_of_its_rectangle_is_filled_from_the_photo():
    scan, _ = turned_scan(np.full((240, 300), 90, np.uint8) + photo() // 8, 5)
    content = find_content(scan)
    part = photo_within(scan, content)
    assert part.shape == content.rectangle.size
    assert part.max() <= 150
    np.testing.assert_array_equal(part[content.mask], scan[content.rectangle.slices][content.mask])


@pytest.mark.parametrize("degrees", [0.2, -0.3])
def test_turned_photo_keeps_nearly_all_of_itself(degrees):
    image = Image.fromarray(bordered(photo(), (30, 30, 30, 30)))
    picture = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=247))
    found = find_content(picture).rectangle
    assert found is not None
    edges = np.array([found.top, found.left, found.bottom, found.right])
    assert np.abs(edges - [30, 30, 270, 330]).max() <= 6


def test_soft_edges_and_rounded_corners_of_a_print():
    inside = bordered(photo(), (30, 30, 30, 30))
    mask = Image.new("L", (360, 300), 0)
    ImageDraw.Draw(mask).rounded_rectangle([30, 30, 329, 269], radius=14, fill=255)
    paper = Image.new("L", (360, 300), 247)
    paper.paste(Image.fromarray(inside), mask=mask.filter(ImageFilter.GaussianBlur(1)))
    found = find_content(np.asarray(paper)).rectangle
    assert found is not None
    edges = np.array([found.top, found.left, found.bottom, found.right])
    assert np.abs(edges - [30, 30, 270, 330]).max() <= 3


def test_white_sky_within_a_white_border_is_no_edge():
    """Where the photo cannot be told from the paper, all that may be photo is within."""
    inside = photo()
    inside = np.where(np.arange(240)[:, None] < 50, 247, inside).astype(np.uint8)
    found = find_content(bordered(inside, (30, 30, 30, 30))).rectangle
    assert found is None or (found.top <= 80 and found.bottom == 270)


@pytest.mark.parametrize(
    "page",
    [
        text_page(),
        text_page(1000, 1400, 22),
        text_page(2400, 1600, 40, paper=240, ink=60, noise=4),
        text_page(1000, 1400, 22, paper=205, ink=70, noise=6),
        text_page(1000, 1400, 22, turned=2, paper=235),
        255 - text_page(1000, 1400, 24),
        np.repeat(text_page()[..., None], 3, axis=2),
        text_page(1000, 1400, 22).astype(np.float32) / 255,
    ],
    ids=["small", "page", "scan", "yellowed", "turned", "inverted", "colour", "deep"],
)
def test_pages_of_text(page):
    assert find_content(page) == Content("graphic")


def test_drawings_and_pictures_of_two_tones():
    fan = drawing()
    noise = np.random.default_rng(0).normal(0, 4, (600, 800))
    pencil = np.clip(drawing(800, 600, paper=235, ink=110) + noise, 0, 255).astype(np.uint8)
    shapes = Image.new("L", (500, 400), 255)
    ImageDraw.Draw(shapes).ellipse([100, 80, 300, 240], fill=0)
    dithered = np.asarray(Image.fromarray(photo()).convert("1").convert("L"))
    for picture in (fan, pencil, np.asarray(shapes), dithered):
        assert find_content(picture).kind == "graphic"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tones", [(255, 200, 150, 90), (235, 190, 140, 100, 60)])
def test_drawings_filled_with_flat_greys(seed, tones):
    pixels = filled_drawing(seed=seed, tones=tones)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    noise = np.random.default_rng(seed).normal(0, 3, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    for picture in (pixels, np.asarray(Image.open(file)), noisy):
        assert find_content(picture).kind == "graphic"


@pytest.mark.parametrize("scale", [0.7, 1, 2, 4])
def test_a_photographed_page_in_uneven_light(scale):
    page = Image.fromarray(data.text())
    size = (round(page.width * scale), round(page.height * scale))
    resized = page.resize(size, Image.Resampling.BICUBIC)
    for turns in (0, 1):
        assert find_content(np.rot90(np.asarray(resized), turns)).kind == "graphic"
    assert find_content(data.page()).kind == "graphic"


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_even_and_tiny_pictures_are_photos(tone):
    assert find_content(np.full((240, 300), tone, np.uint8)) == Content()
    assert find_content(np.full((240, 300, 3), tone, np.uint8)) == Content()
    for shape in ((1, 1), (1, 3000), (40, 40), (47, 2000)):
        assert find_content(np.full(shape, tone, np.uint8)) == Content()
    ramp = np.broadcast_to(np.linspace(0, 255, 300), (240, 300)).astype(np.uint8)
    assert find_content(ramp) == Content()


def test_silhouette_before_the_sky_is_a_photo():
    assert find_content(np.ascontiguousarray(data.camera()[:100, :140])) == Content()


def test_medians_and_distances_of_bytes_are_those_of_pillow_and_numpy():
    rng = np.random.default_rng(0)
    for tones in (2, 5, 256):
        for shape in ((1, 1), (1, 9), (8, 1), (2, 3), (31, 40)):
            grey = rng.integers(0, tones, shape).astype(np.uint8)
            expected = Image.fromarray(grey).filter(ImageFilter.MedianFilter(3))
            np.testing.assert_array_equal(median_of_nine(grey), np.asarray(expected))
            for tone in (0.0, 1.5, 100.0, 254.5, 255.0):
                apart = np.abs(grey.astype(np.float64) - tone)
                assert median_distance(grey, tone) == np.median(apart)
                for tolerance in (8.0, 13.7, 28.0):
                    away = away_from(grey, tone, tolerance)
                    np.testing.assert_array_equal(away, apart > tolerance)
