from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from skimage.color import rgb2lab
from torch.nn import functional as F

from pikfix.evaluation.siblings import jitter_colors, random_affine, rotate_hue
from pikfix.systems.pikfix.training import neighbours
from pikfix.systems.pikfix.training.augment import prepare
from pikfix.systems.pikfix.training.batches import NEAR, RANDOM, SIBLING, TrainingBatches
from pikfix.systems.pikfix.training.config import DataConfig
from pikfix.systems.pikfix.training.neighbours import descriptors, load_table, nearest, save_table
from pikfix.training.dataset import batch_loader, generator, lightness, random_crop
from pikfix.training.errors import TrainingError
from pikfix.training.features import FeatureNet
from pikfix.training.photo_store import open_photos

CONFIG = DataConfig(crop=64, side=80, references=3, neighbours=2)


@pytest.fixture(scope="module")
def store(photo_folder):
    return open_photos(photo_folder, 80)


@pytest.fixture(scope="module")
def table(store):
    return nearest(descriptors(store), 2)


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_depends_on_seed_and_step_alone(store, table):
    first = TrainingBatches(store, table, CONFIG, 3, seed=5)
    again = TrainingBatches(store, table, CONFIG, 3, seed=5)
    for step in (7, 0, 3, 7):
        assert _equal(first[step], again[step])
    assert not _equal(first[0], first[1])
    assert not _equal(first[0], TrainingBatches(store, table, CONFIG, 3, seed=6)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(store, table, workers):
    dataset = TrainingBatches(store, table, CONFIG, 2, seed=1)
    batches = iter(batch_loader(dataset, 4, workers))
    for step in (4, 5, 6):
        assert _equal(next(batches), dataset[step])


def test_ranks_share_the_batch(store, table):
    whole = TrainingBatches(store, table, CONFIG, 4, seed=2)[3]
    halves = [
        TrainingBatches(store, table, CONFIG, 2, seed=2, rank=rank, world=2)[3] for rank in (0, 1)
    ]
    joined = {key: torch.cat([half[key] for half in halves]) for key in whole}
    assert _equal(whole, joined)


def test_every_photo_comes_once_per_epoch_in_another_order(store, table):
    dataset = TrainingBatches(store, table, CONFIG, 1, seed=0)
    epochs = [[dataset.photo_of(5 * epoch + i, 0) for i in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_kinds_of_references_follow_the_shares(store, table):
    for share, kind in (("sibling", SIBLING), ("near", NEAR), ("random", RANDOM)):
        shares = {"sibling": 0.0, "near": 0.0, "random": 0.0, share: 2.0}
        config = dataclasses.replace(CONFIG, references=1, **shares)
        dataset = TrainingBatches(store, table, config, 4, seed=0)
        assert set(dataset[0]["kinds"].flatten().tolist()) == {kind}
    counts = np.zeros(3)
    config = dataclasses.replace(CONFIG, references=1, sibling=0.5, near=0.3, random=0.2)
    dataset = TrainingBatches(store, table, config, 1, seed=0)
    for step in range(400):
        counts[dataset._kinds(generator(0, step, 0), 1)[0]] += 1
    # Three standard deviations of 400 draws.
    np.testing.assert_allclose(counts / 400, (0.5, 0.3, 0.2), atol=0.075)


def test_references_are_of_the_photos_they_should_be(store, table):
    dataset = TrainingBatches(store, table, CONFIG, 1, seed=0)
    for step in range(60):
        rng = generator(9, step, 0)
        photo = step % len(store)
        assert dataset._reference(photo, SIBLING, rng) == photo
        assert dataset._reference(photo, NEAR, rng) in table[photo]
        assert dataset._reference(photo, RANDOM, rng) != photo
    others = {dataset._reference(2, RANDOM, generator(9, i, 0)) for i in range(60)}
    assert others == {0, 1, 3, 4}


def test_the_number_of_references_varies_between_batches_not_within(store, table):
    dataset = TrainingBatches(store, table, CONFIG, 2, seed=0)
    assert {dataset[step]["references"].shape[1] for step in range(12)} == {1, 2, 3}


def test_lightness_is_cielab():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.testing.assert_allclose(lightness(rgb), rgb2lab(rgb)[..., 0] / 100, atol=2e-5)


def test_clean_samples_are_exact_and_degraded_ones_are_not(store, table):
    for share, strict in ((0.0, True), (1.0, False)):
        config = dataclasses.replace(CONFIG, degraded=share, hue_rotation=0)
        batch = TrainingBatches(store, table, config, 3, seed=0)[0]
        inputs = prepare(batch)
        truth = rgb2lab(batch["truth"].numpy().transpose(0, 2, 3, 1) / 255)
        np.testing.assert_allclose(inputs.truth_lab[:, 0], truth[..., 0] / 50 - 1, atol=1e-4)
        np.testing.assert_allclose(
            inputs.truth_lab[:, 1:], truth[..., 1:].transpose(0, 3, 1, 2) / 110, atol=1e-4
        )
        assert torch.equal(inputs.photo_l, inputs.truth_lab[:, :1]) == strict
        assert inputs.photo_l.abs().max() <= 1


def test_sparse_damage_is_less_of_the_same(store, table):
    """Fewer kinds occur, down to none; without the share the samples are as they were."""

    def errors(share):
        config = dataclasses.replace(CONFIG, degraded=1.0, sparse_damage_share=share)
        batches = TrainingBatches(store, table, config, 60, seed=0)
        batch = batches[0]
        clean = torch.from_numpy(
            np.stack([lightness(x) for x in batch["truth"].permute(0, 2, 3, 1).numpy()])
        )
        return (batch["degraded"][:, 0] / 255 - clean).abs().mean((1, 2))

    default, sparse = errors(0.0), errors(1.0)
    assert float(sparse.median()) < 0.7 * float(default.median())
    assert float(sparse.min()) < 0.004 < float(default.min())  # half a grey level and rounding


def test_a_crop_of_the_whole_short_side_is_the_resized_photo(store):
    class Fixed:
        """Draws the largest window at its leftmost place, not mirrored."""

        def uniform(self, low, high):
            return high if low else low

        def random(self):
            return 0.9

    photo = store[0]
    side = min(photo.shape[:2])
    crop = random_crop(photo, side, Fixed())
    np.testing.assert_array_equal(crop, photo[:side, :side])


def test_siblings_are_warped_as_their_matrix_says(store, table):
    """Against SciPy's bilinear interpolation with mirrored borders, from the same matrix."""
    config = dataclasses.replace(
        CONFIG, references=1, sibling=1, near=0, random=0, jitter=0, hue_rotation=0
    )
    batch = TrainingBatches(store, table, config, 2, seed=4)[0]
    batch["jitter"] = torch.tensor([0.0, 1.0, 1.0]).repeat(2, 1, 1)
    assert not torch.allclose(batch["affine"], torch.eye(2, 3))
    ours = prepare(batch).reference_lab[:, 0]
    size = 64
    steps = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(steps, steps)
    for index in range(2):
        matrix = batch["affine"][index, 0].double().numpy()
        source = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
        columns, rows = ((axis + 1) * size / 2 - 0.5 for axis in source)
        rgb = batch["references"][index, 0].numpy() / 255.0
        warped = np.stack(
            [map_coordinates(c, (rows, columns), order=1, mode="reflect") for c in rgb], axis=2
        )
        lab = rgb2lab(warped)
        np.testing.assert_allclose(ours[index, 0], lab[..., 0] / 50 - 1, atol=2e-3)
        np.testing.assert_allclose(ours[index, 1], lab[..., 1] / 110, atol=4e-3)


def test_affine_maps_stay_small_and_none_is_the_identity():
    rng = np.random.default_rng(0)
    for _ in range(200):
        matrix = random_affine(1.0, rng)
        scales = np.linalg.svd(matrix[:, :2], compute_uv=False)
        assert 1 / 1.2 * 0.9 < scales[1] <= scales[0] < 1 / 0.8 * 1.1
        assert np.abs(matrix[:, 2]).max() <= 0.2
    np.testing.assert_array_equal(random_affine(0.0, rng), np.eye(2, 3))


def test_hue_turns_truth_and_references_together(store, table):
    config = dataclasses.replace(
        CONFIG, references=1, sibling=1, near=0, random=0, affine=0, jitter=0, hue_rotation=1
    )
    batch = TrainingBatches(store, table, config, 3, seed=0)[0]
    assert (batch["hue"] != 0).all()
    turned = prepare(batch)
    angles = batch["hue"].clone()
    batch["hue"].zero_()
    straight = prepare(batch)
    for ours, plain in (
        (turned.truth_lab, straight.truth_lab),
        (turned.reference_lab[:, 0], straight.reference_lab[:, 0]),
    ):
        torch.testing.assert_close(ours[:, 0], plain[:, 0])
        before = torch.complex(plain[:, 1], plain[:, 2])
        after = before * torch.polar(torch.ones(3), angles)[:, None, None]
        torch.testing.assert_close(torch.complex(ours[:, 1], ours[:, 2]), after)


def test_jitter_of_colours(noise):
    lab = noise(2, 3, 8, 8) * 0.3
    same = jitter_colors(lab, torch.zeros(2), torch.ones(2), torch.ones(2))
    torch.testing.assert_close(same, lab)
    out = jitter_colors(
        lab, torch.tensor([0.0, np.pi / 2]), torch.tensor([0.5, 1.0]), torch.tensor([2.0, 1.0])
    )
    torch.testing.assert_close(out[0, 1:], lab[0, 1:] * 0.5)
    torch.testing.assert_close(out[0, 0] - lab[0, 0].mean(), (lab[0, 0] - lab[0, 0].mean()) * 2)
    torch.testing.assert_close(out[1, 1], -lab[1, 2])
    torch.testing.assert_close(out[1, 2], lab[1, 1])
    torch.testing.assert_close(
        rotate_hue(rotate_hue(lab, torch.full((2,), 1.0)), torch.full((2,), -1.0)), lab
    )


def test_a_photo_is_nearest_to_its_own_copy(store):
    photos = [*store, np.ascontiguousarray(store[3][4:, 4:])]
    table = nearest(descriptors(photos), 2)
    assert table[3, 0] == 5
    assert table[5, 0] == 3
    assert all(index not in table[index] for index in range(6))
    # The largest matrix product row by row, the slow way.
    vectors = descriptors(photos)
    for row, vector in zip(table, vectors, strict=True):
        scores = [float(vector @ other) for other in vectors]
        assert scores[row[0]] >= scores[row[1]]


class Corners(FeatureNet):
    """Features that can be computed by hand: the picture in two by two means."""

    def forward(self, rgb):
        return [F.adaptive_avg_pool2d(rgb, 2)]


def test_descriptors_from_a_net_do_not_depend_on_their_batch(store, monkeypatch):
    photos = list(store)
    together = descriptors(photos, Corners())
    monkeypatch.setattr(neighbours, "_NET_BATCH", 2)
    np.testing.assert_allclose(descriptors(photos, Corners()), together, atol=1e-6)
    # Another order of the photos is another order of the rows, and nothing else.
    np.testing.assert_allclose(descriptors(photos[::-1], Corners())[::-1], together, atol=1e-6)
    assert together.shape == (len(photos), 3 + 3 * 4)


def test_neighbour_tables_are_kept_renumbered_and_refused(store, table, tmp_path, photo_folder):
    path = tmp_path / "table.npz"
    save_table(path, table, store)
    np.testing.assert_array_equal(load_table(path, store), table)
    np.save(tmp_path / "table.npy", table)
    np.testing.assert_array_equal(load_table(tmp_path / "table.npy", store), table)

    order = [3, 0, 4, 1, 2]
    position = {old: new for new, old in enumerate(order)}
    moved = np.array([[position[i] for i in table[old]] for old in order], dtype=np.int32)
    np.savez(path, table=moved, names=np.array([store.names[i] for i in order]))
    np.testing.assert_array_equal(load_table(path, store), table)

    np.savez(path, table=table[:4], names=np.array(store.names[:4]))
    with pytest.raises(TrainingError, match=r"sub/retina.png"):
        load_table(path, store)
    np.save(tmp_path / "table.npy", table + 3)
    with pytest.raises(TrainingError, match="make it anew"):
        load_table(tmp_path / "table.npy", store)
    for content in (b"", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="cannot be read"):
            load_table(path, store)


def test_a_table_of_the_wrong_length_is_refused(store, table):
    with pytest.raises(ValueError, match="4 rows of neighbours for 5 photos"):
        TrainingBatches(store, table[:4], CONFIG, 1, seed=0)
