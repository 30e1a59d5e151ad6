from __future__ import annotations

import numpy as np
import torch

from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.networks.tone import DEGREE, Tone, apply_tone, best_tone


def test_the_curve_is_the_polynomial() -> None:
    rng = np.random.default_rng(0)
    photo = rng.uniform(-1, 1, (3, 1, 5, 7))
    coefficients = rng.uniform(-1, 1, (3, DEGREE + 1))
    out = apply_tone(torch.from_numpy(photo), torch.from_numpy(coefficients))
    for row, curve, given in zip(out.numpy(), coefficients, photo, strict=True):
        np.testing.assert_allclose(
            row, given + np.polynomial.polynomial.polyval(given, curve), atol=1e-12
        )


def test_the_best_curve_is_the_least_squares_fit() -> None:
    rng = np.random.default_rng(1)
    photo = rng.uniform(-1, 1, (2, 1, 40, 30))
    truth = np.tanh(1.5 * photo) + rng.normal(0, 0.1, photo.shape)
    found = best_tone(torch.from_numpy(photo), torch.from_numpy(truth)).numpy()
    for curve, given, wanted in zip(found, photo, truth, strict=True):
        expected = np.polynomial.polynomial.polyfit(given.ravel(), (wanted - given).ravel(), DEGREE)
        np.testing.assert_allclose(curve, expected, atol=1e-4)


def test_the_best_curve_of_one_grey_is_finite_and_right_there() -> None:
    photo, truth = torch.full((1, 1, 16, 16), 0.3), torch.full((1, 1, 16, 16), -0.2)
    curve = best_tone(photo, truth)
    assert float(curve.abs().max()) < 1
    torch.testing.assert_close(apply_tone(photo, curve), truth, atol=1e-4, rtol=0)


def test_an_untrained_tone_changes_nothing() -> None:
    tone = Tone(8)
    tone.identity()
    photo = torch.rand(2, 1, 33, 50) * 2 - 1
    assert torch.equal(apply_tone(photo, tone(photo, photo.flip(2))), photo)


def test_what_counts_is_what_a_photo_shows_not_where() -> None:
    """The sum of a whole photo: moved by whole cells of its coarsest features, it stays."""
    torch.manual_seed(0)
    tone = Tone(8).double()
    photo = torch.rand(1, 1, 128, 160, dtype=torch.float64) * 2 - 1
    framed = torch.nn.functional.pad(photo, (64, 64, 64, 64), value=0.5)
    moved = framed.roll((32, -32), (2, 3))
    torch.testing.assert_close(tone(framed, -framed), tone(moved, -moved))


def test_far_places_decide_together(tiny: PikFix) -> None:
    """What no convolution reaches: a change in one corner sets the tone of the other."""
    photo = torch.rand(1, 1, 64, 700) - 0.5
    changed = photo.clone()
    changed[..., :60] = -1
    restoration = tiny.restoration
    moved = (restoration(photo) - restoration(changed))[..., 600:]
    assert (moved != 0).float().mean() > 0.5  # what is black or white stays so


def test_joined_tiles_get_the_tone_of_the_whole(tiny: PikFix) -> None:
    restoration = tiny.restoration.double()
    photo = torch.rand(1, 1, 64, 640, dtype=torch.float64) * 2 - 1
    left = restoration.repaired(photo[..., :448])[..., :320]
    right = restoration.repaired(photo[..., 192:])[..., 128:]
    joined = torch.cat((left, right), dim=-1)
    toned = restoration.tone.set(photo, joined).clamp(-1, 1)
    torch.testing.assert_close(toned, restoration(photo))
    # A tile's own tone is another.
    assert (
        restoration(photo[..., :448])[..., :320] - restoration(photo)[..., :320]
    ).abs().max() > 0.001
