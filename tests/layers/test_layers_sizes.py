"""Resizing and padding, held to PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pikfix.layers.sizes import pad_to_multiple, resize_antialiased

SIZES = [
    ((512, 512), (512, 512)),
    ((1, 1), (32, 32)),
    ((100, 84), (96, 96)),
    ((777, 1031), (384, 512)),
    ((2000, 1333), (512, 352)),
    ((33, 20001), (32, 512)),
    ((40, 1200), (96, 64)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_resize_is_pytorchs(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pictures = torch.rand(2, 1, *old) * 2 - 1
    expected = F.interpolate(
        pictures.double(), size=new, mode="bilinear", align_corners=False, antialias=True
    )
    got = resize_antialiased(pictures, new)
    assert got.dtype == torch.float32
    assert float((got.double() - expected).abs().max()) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_antialiased(pictures, new), got)


def test_it_passes_gradients_as_pytorchs_does() -> None:
    torch.manual_seed(0)
    pictures = (torch.rand(1, 1, 50, 37, dtype=torch.float64)).requires_grad_()
    weights = torch.rand(1, 1, 32, 64, dtype=torch.float64)
    (got,) = torch.autograd.grad((resize_antialiased(pictures, (32, 64)) * weights).sum(), pictures)
    theirs = F.interpolate(pictures, size=(32, 64), mode="bilinear", antialias=True)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), pictures)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sides", [(1, 1), (7, 8), (8, 9), (16, 17)])
def test_padding_repeats_the_edges_up_to_a_multiple(sides: tuple[int, int]) -> None:
    pictures = torch.arange(sides[0] * sides[1], dtype=torch.float32).reshape(1, 1, *sides)
    padded = pad_to_multiple(pictures, 8)
    assert [side % 8 for side in padded.shape[2:]] == [0, 0]
    assert all(0 <= p - s < 8 for p, s in zip(padded.shape[2:], sides, strict=True))
    assert torch.equal(padded[..., : sides[0], : sides[1]], pictures)
    assert bool((padded[..., sides[0] :, -1] == pictures[0, 0, -1, -1]).all())
