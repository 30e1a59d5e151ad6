from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch

from pikfix.layers.color import AB_SCALE, lab_to_rgb, luminance_to_grey, rgb_to_lab


def astronaut() -> np.ndarray:
    return skimage.data.astronaut()[::3, ::3] / 255.0


def test_rgb_to_lab_is_skimages() -> None:
    rgb = astronaut()
    lab = rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    expected = skimage.color.rgb2lab(rgb)
    np.testing.assert_allclose((lab[..., 0] + 1) * 50, expected[..., 0], atol=1e-4)
    np.testing.assert_allclose(lab[..., 1:] * AB_SCALE, expected[..., 1:], atol=2e-3)


def test_lab_to_rgb_inverts() -> None:
    rgb = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=1e-3, rtol=0)


def test_out_of_gamut_is_clipped() -> None:
    lab = torch.tensor([0.9, 0.9, -0.9]).view(1, 3, 1, 1)
    rgb = lab_to_rgb(lab)
    assert rgb.min() >= 0
    assert rgb.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.04045])
def test_gradients_are_finite_at_the_curves_ends(value: float) -> None:
    rgb = torch.full((1, 3, 2, 2), value, requires_grad=True)
    lab_to_rgb(rgb_to_lab(rgb)).sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()


def test_the_grey_of_a_luminance_has_it() -> None:
    grey = np.linspace(0, 1, 300)
    luminance = skimage.color.rgb2lab(np.repeat(grey[:, None], 3, axis=1))[:, 0] / 50 - 1
    found = luminance_to_grey(torch.from_numpy(luminance)).numpy()
    np.testing.assert_allclose(found, grey, atol=2e-5)
