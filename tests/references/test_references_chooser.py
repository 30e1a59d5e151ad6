import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pikfix.references.builder import build_library
from pikfix.references.chooser import LibraryChooser, PictureCache
from pikfix.references.errors import LibraryError
from pikfix.references.library import CANDIDATES, Match, suitable
from pikfix.references.pictures import reduce_picture


def set_threshold(library, value):
    manifest = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps({**manifest, "threshold": value}))


def wanted(library, pixels):
    return suitable(library.rank(reduce_picture(pixels), CANDIDATES), library.threshold)


def test_chooses_what_suits_best(built, samples):
    choose = LibraryChooser(built[0], count=2)
    chosen, rejection_reason = choose(samples["coffee_1.png"])
    assert rejection_reason is None
    assert [one.match.name for one in chosen] == [
        match.name for match in wanted(choose.library, samples["coffee_1.png"])[:2]
    ]
    for one in chosen:
        np.testing.assert_array_equal(one.pixels, samples[one.match.name])


def test_below_the_threshold_nothing_is_chosen_unless_forced(library, samples):
    set_threshold(library, 0.99)
    choose = LibraryChooser(library, count=3)
    chosen, rejection_reason = choose(samples["coffee_1.png"])
    assert chosen == []
    assert "none that suits" in rejection_reason
    assert "0.990 is needed" in rejection_reason
    forced, rejection_reason = choose(samples["coffee_1.png"], force=True)
    assert len(forced) == 3
    assert rejection_reason is None


def test_only_the_suitable_ones_of_several_are_chosen(library, samples):
    ranked = LibraryChooser(library).library.rank(reduce_picture(samples["rocket_1.png"]), 3)
    set_threshold(library, (ranked[1].score + ranked[2].score) / 2)
    chosen, _ = LibraryChooser(library, count=3)(samples["rocket_1.png"])
    assert {one.match.name for one in chosen} == {match.name for match in ranked[:2]}


def test_a_picture_that_went_bad_is_passed_over(tmp_path, pictures, checkpoint, samples):
    build_library(pictures, tmp_path / "library", backbone=checkpoint)
    choose = LibraryChooser(tmp_path / "library", count=2)
    first, second, third = wanted(choose.library, samples["chelsea_1.png"])[:3]
    second.path.write_bytes(b"no picture")
    chosen, _ = choose(samples["chelsea_1.png"])
    assert [one.match.name for one in chosen] == [first.name, third.name]
    shutil.rmtree(pictures)
    chosen, rejection_reason = choose(samples["chelsea_1.png"])
    assert chosen == []
    assert "none of the library's pictures is in" in rejection_reason


def test_a_library_of_copies_only_has_no_reference(tmp_path, built, checkpoint, samples):
    (tmp_path / "one").mkdir()
    shutil.copy(built[1] / "coffee_0.png", tmp_path / "one")
    build_library(tmp_path / "one", tmp_path / "library", backbone=checkpoint)
    chosen, rejection_reason = LibraryChooser(tmp_path / "library")(samples["coffee_0.png"])
    assert (chosen, rejection_reason) == ([], "its library has no other picture")


def test_cache_keeps_the_last_used_and_sees_changes(built, tmp_path, samples):
    lookups = []
    cache = PictureCache(50, 2, lookups.append)
    paths = []
    for name in ("coffee_0.png", "coffee_1.png", "coffee_2.png"):
        paths.append(tmp_path / name)
        shutil.copy(built[1] / name, tmp_path / name)
    one, two, three = paths
    pixels, sha256 = cache.read(one)
    assert pixels.shape == (100, 100, 3)
    assert sha256 == hashlib.sha256(one.read_bytes()).hexdigest()
    assert cache.read(two) is cache.read(two)
    cache.read(one)
    cache.read(three)  # drops two
    assert lookups == [False, False, True, True, False]
    assert len(cache) == 2
    cache.read(one)
    cache.read(two)
    assert lookups[-2:] == [True, False]
    shutil.copy(built[1] / "rocket_0.png", two)
    cache.read(two)
    assert lookups[-1] is False
    two.unlink()
    with pytest.raises(FileNotFoundError):
        cache.read(two)


def test_no_library_no_chooser(tmp_path):
    with pytest.raises(LibraryError, match="no library of references"):
        LibraryChooser(tmp_path)


def matches(*scores):
    return [Match(f"{s}.png", Path(f"{s}.png"), s, s / 2, s / 2, (0.0,) * 8) for s in scores]


@pytest.mark.parametrize(
    ("scores", "threshold", "kept"),
    [
        ((), 0.0, 0),
        ((0.9, 0.8, 0.5), 0.0, 2),  # 0.5 is under four fifths of 0.9
        ((0.9, 0.8, 0.75), 0.78, 2),
        ((0.4, 0.39), 0.5, 0),
        ((0.4, 0.39), -np.inf, 2),
        ((-0.1, -0.2), -np.inf, 1),
    ],
)
def test_what_suits(scores, threshold, kept):
    ranked = matches(*scores)
    assert suitable(ranked, threshold) == ranked[:kept]
