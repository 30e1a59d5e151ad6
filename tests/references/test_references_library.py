import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pikfix.layers.resnet import ResNetFeatures
from pikfix.references import fingerprint, shortlist
from pikfix.references.backbone import Backbone
from pikfix.references.builder import build_library
from pikfix.references.errors import LibraryError
from pikfix.references.library import Library, describe
from pikfix.references.manifest import VERSION
from pikfix.references.pictures import SIDE, read_picture, reduce_luminance, reduce_picture
from pikfix.references.scoring import Weights, score
from pikfix.references.segments import gather


def exhaustive(library, picture):
    """Names in the order of the full scores, copies left out, without any shortlist."""
    entries = library.manifest.entries
    features = gather(library._segments, entries)
    candidates = (torch.from_numpy(features.means), torch.from_numpy(features.maps))
    photo = describe(library.backbone, picture)
    total = sum(score(library.layout, library.weights, photo, candidates))
    own = fingerprint.orientations(fingerprint.fingerprint(picture.luminance))
    far = fingerprint.distances(own, features.fingerprints) > fingerprint.COPY_DISTANCE
    return [entries[i].name for i in total.argsort(descending=True) if far[i]]


def test_ranks_as_an_exhaustive_search(built, samples):
    library = Library(built[0])
    for name, pixels in list(samples.items())[::2]:
        picture = reduce_picture(pixels)
        expected = exhaustive(library, picture)
        assert name not in expected
        assert [match.name for match in library.rank(picture, 100)] == expected
        # A shortlist of six finds the best two of seventeen, by inner products alone.
        short = [match.name for match in library.rank(picture, 2, shortlist=6)]
        assert short == expected[:2]


def test_a_match_tells_its_terms_and_its_file(built, samples):
    library = Library(built[0])
    for match in library.rank(reduce_picture(samples["coffee_0.png"]), 5):
        assert match.score == pytest.approx(match.texture + match.structure)
        assert match.path == built[1] / match.name
        assert 0 < match.texture <= 0.5
        assert -0.5 <= match.structure <= 0.5
    texture = Library(built[0], Weights.even(4, structure=0)).rank(
        reduce_picture(samples["coffee_0.png"]), 1
    )
    assert texture[0].structure == 0
    with pytest.raises(LibraryError, match="has 4 levels"):
        Library(built[0], Weights.even(5))


def test_copies_of_the_photo_and_of_what_it_was_cut_from_are_left_out(built, samples):
    library = Library(built[0])
    own = "astronaut_1.png"
    picture = reduce_picture(samples[own])
    assert library.rank(picture, 1, copies=True)[0].name == own
    assert own not in {match.name for match in library.rank(picture, 18)}
    part = reduce_picture(np.ascontiguousarray(samples[own][20:110, 40:130]))
    assert own in {match.name for match in library.rank(part, 18)}
    assert own not in {match.name for match in library.rank(part, 18, original=picture)}


def test_grey_and_colour_of_one_photo_rank_alike(built, samples):
    library = Library(built[0])
    picture = reduce_picture(samples["chelsea_1.png"])
    luminance = reduce_luminance(picture.luminance)
    assert luminance.luminance.shape == (SIDE, SIDE)
    first, second = ([match.name for match in library.rank(one, 5)] for one in (picture, luminance))
    assert first == second


def test_threshold_is_three_deviations_below_what_its_own_pictures_find(
    tmp_path, built, checkpoint
):
    library = Library(built[0])
    best = [
        library.rank(read_picture(built[1] / entry.name), 1)[0].score
        for entry in library.manifest.entries
    ]
    median = np.median(best)
    expected = median - 3 * 1.4826 * np.median(np.abs(best - median))
    assert library.threshold == pytest.approx(expected, abs=2e-3)
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(built[1].iterdir())[:4]:
        shutil.copy(path, few)
    assert build_library(few, tmp_path / "small", backbone=checkpoint).threshold == 0


def test_an_inverted_file_serves_large_libraries(tmp_path, built, checkpoint, monkeypatch):
    picture = read_picture(built[1] / "rocket_2.png")
    expected = [match.name for match in Library(built[0]).rank(picture, 3, shortlist=10)]
    monkeypatch.setattr(shortlist, "EXACT_LIMIT", 10)
    monkeypatch.setattr(shortlist, "_PROBED_SHARE", 1.0)
    folder = tmp_path / "library"
    build_library(built[1], folder, backbone=checkpoint)
    assert list(folder.glob("index-*/inverted.faiss"))
    library = Library(folder)
    assert [match.name for match in library.rank(picture, 3, shortlist=10)] == expected
    (file,) = folder.glob("index-*/inverted.faiss")
    head = file.read_bytes()[:100]
    file.unlink()  # not cut where it is: threads of faiss may still read ahead in it
    file.write_bytes(head)
    with pytest.raises(LibraryError, match="damaged"):
        Library(folder)


def test_the_inverted_file_finds_nearly_what_an_exact_search_finds(tmp_path):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(60, 48))
    vectors = centres[generator.integers(0, 60, 6000)] + 0.5 * generator.normal(size=(6000, 48))
    vectors = vectors.astype(np.float32)
    shortlist.write_inverted(vectors, tmp_path / "inverted.faiss")
    index = shortlist.faiss.read_index(str(tmp_path / "inverted.faiss"))
    index.nprobe = max(1, int(shortlist._PROBED_SHARE * index.nlist))
    queries = vectors[::200] + 0.1
    _, found = index.search(queries, 50)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
    recall = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.9


def damage_manifest(library):
    text = (library / "library.json").read_text()
    (library / "library.json").write_text(text[: len(text) // 2])


def set_manifest(**values):
    def change(library):
        manifest = json.loads((library / "library.json").read_text())
        (library / "library.json").write_text(json.dumps({**manifest, **values}))

    return change


def truncate(pattern, keep=200):
    def change(library):
        (file,) = library.glob(pattern)
        file.write_bytes(file.read_bytes()[:keep])

    return change


def remove(pattern):
    def change(library):
        (file,) = library.glob(pattern)
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    return change


def swap_backbone(library):
    torch.manual_seed(9)
    blocks, width = (1, 1, 1, 1), 8
    other = Backbone("resnet", ResNetFeatures(blocks, width), {"blocks": blocks, "width": width})
    (file,) = library.glob("backbone-*")
    file.write_bytes(other.to_bytes())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (damage_manifest, "is damaged .* build the library again"),
        (set_manifest(format="other"), "not the manifest of a library"),
        (set_manifest(version=VERSION + 1), f"library format {VERSION + 1}.*update pikfix"),
        (set_manifest(entries=[["a"]]), "is damaged"),
        (remove("library.json"), "is no library of references: make one with"),
        (remove("segment-*/maps.npy"), r"maps\.npy is missing: build the library again"),
        (truncate("segment-*/maps.npy", 5000), "is damaged .* build the library again"),
        (truncate("segment-*/means.npy", 10), "is damaged .* build the library again"),
        (truncate("index-*/projection.npz"), "is damaged .* build the library again"),
        (remove("index-*"), "is missing: build the library again"),
        (remove("backbone-*"), "is missing: build the library again"),
        (truncate("backbone-*"), "not a whole safetensors file"),
        (swap_backbone, "another backbone .* --backbone"),
    ],
)
def test_damage_is_named_in_one_line_and_mended_by_a_build(
    library, built, checkpoint, change, match
):
    change(library)
    with pytest.raises(LibraryError, match=match) as caught:
        Library(library)
    assert "\n" not in str(caught.value)
    if change is damage_manifest:
        (library / "library.json").unlink()  # as the message says
    if (library / "library.json").exists() and "format" in str(caught.value):
        return  # not ours to overwrite
    if "manifest of a library" in match or match == "is damaged":
        return
    again = build_library(built[1], library, backbone=checkpoint)
    assert again.usable == 18
    assert Library(library).rank(read_picture(built[1] / "rocket_0.png"), 3)


def test_missing_pictures_are_passed_over(tmp_path, pictures, checkpoint, samples):
    build_library(pictures, tmp_path / "library", backbone=checkpoint)
    library = Library(tmp_path / "library")
    picture = reduce_picture(samples["coffee_0.png"])
    best, second = library.rank(picture, 2)
    best.path.unlink()
    assert library.rank(picture, 1)[0].name == second.name
    shutil.rmtree(pictures)
    with pytest.raises(LibraryError, match="none of the library's pictures is in"):
        library.rank(picture, 1)


def test_deep_and_grey_pictures_reduce_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    shallow, deep = reduce_picture(pixels), reduce_picture((pixels / 255.0).astype(np.float32))
    np.testing.assert_array_equal(shallow.luminance, deep.luminance)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    flat = reduce_picture(grey)
    assert flat.tint.chroma < 0.01
    assert flat.why_unfit == "it is grey"
    assert shallow.why_unfit is None
