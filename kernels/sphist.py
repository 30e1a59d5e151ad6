"""SPHist: the normalised Gaussian histogram of a pixel's colour, with average pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.kernels import checks

# Bins of one stripe of rows that are held at a time on the CPU (in elements).
_STRIPE_ELEMENTS = 1 << 22


def _stripe_rows(ab: Tensor, bins: int, pool: int) -> int:
    """Rows of ab worked on at a time: a multiple of the pooling window."""
    batch, _, _, width = ab.shape
    per_window = 2 * batch * bins * width * pool
    return pool * max(1, _STRIPE_ELEMENTS // per_window)


def _bins(stripe: Tensor, centres: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Distances to the centres in units of σ, and the bins: both [B, 2, K, rows, W]."""
    distance = (stripe[:, :, None] - centres[None, :, :, None, None]) / sigma
    return distance, torch.softmax(distance.square().mul_(-0.5), dim=2)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op("pikfix::sphist", mutates_args=(), device_types="cpu")
def _op(ab: Tensor, centres: Tensor, sigma: float, pool: int) -> Tensor:
    batch, _, height, width = ab.shape
    bins = centres.shape[1]
    x, u = (tensor.to(_accumulator(ab.dtype)) for tensor in (ab, centres))
    out = ab.new_empty(batch, 2 * bins, height // pool, width // pool)
    rows = _stripe_rows(ab, bins, pool)
    for top in range(0, height, rows):
        _, histogram = _bins(x[:, :, top : top + rows], u, sigma)
        pooled = (
            F.avg_pool2d(histogram.flatten(1, 2), pool) if pool > 1 else histogram.flatten(1, 2)
        )
        out[:, :, top // pool : top // pool + pooled.shape[2]] = pooled
    return out


@_op.register_kernel("cuda")
def _cuda(ab: Tensor, centres: Tensor, sigma: float, pool: int) -> Tensor:
    # Triton is imported where a GPU needs it: the CPU does without.
    from pikfix.kernels import sphist_triton  # noqa: PLC0415

    return sphist_triton.forward(ab, centres, sigma, pool)


@_op.register_fake
def _fake(ab: Tensor, centres: Tensor, sigma: float, pool: int) -> Tensor:
    batch, _, height, width = ab.shape
    return ab.new_empty(batch, 2 * centres.shape[1], height // pool, width // pool)


@torch.library.custom_op("pikfix::sphist_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    grad: Tensor, ab: Tensor, centres: Tensor, sigma: float, pool: int
) -> tuple[Tensor, Tensor]:
    dtype = _accumulator(ab.dtype)
    x, u = ab.to(dtype), centres.to(dtype)
    grad_ab = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_centres = torch.zeros_like(u)
    rows = _stripe_rows(ab, u.shape[1], pool)
    for top in range(0, ab.shape[2], rows):
        distance, histogram = _bins(x[:, :, top : top + rows], u, sigma)
        part = grad[:, :, top // pool : (top + distance.shape[3]) // pool].to(dtype)
        part = part.repeat_interleave(pool, dim=2).repeat_interleave(pool, dim=3)
        part = part.div_(pool * pool).view(distance.shape)
        mean = (histogram * part).sum(dim=2, keepdim=True)
        # d h_k / d x = -h_k (d_k - Σ h d) / σ with d = (x - u) / σ, and the opposite for u_k.
        flow = histogram.mul_(part.sub_(mean)).mul_(distance).div_(sigma)
        grad_ab[:, :, top : top + rows] = -flow.sum(dim=2)
        grad_centres += flow.sum(dim=(0, 3, 4))
    return grad_ab.to(ab.dtype), grad_centres.to(centres.dtype)


@_backward_op.register_kernel("cuda")
def _cuda_backward(
    grad: Tensor, ab: Tensor, centres: Tensor, sigma: float, pool: int
) -> tuple[Tensor, Tensor]:
    from pikfix.kernels import sphist_triton  # noqa: PLC0415

    return sphist_triton.backward(grad, ab, centres, sigma, pool)


@_backward_op.register_fake
def _backward_fake(
    grad: Tensor, ab: Tensor, centres: Tensor, sigma: float, pool: int
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(ab, memory_format=contiguous),
        torch.empty_like(centres, memory_format=contiguous),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ab, centres, ctx.sigma, ctx.pool = inputs
    ctx.save_for_backward(ab, centres)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    ab, centres = ctx.saved_tensors
    grad_ab, grad_centres = _backward_op(grad, ab, centres, ctx.sigma, ctx.pool)
    return grad_ab, grad_centres, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def sphist(ab: Tensor, centres: Tensor, sigma: float, pool: int = 1) -> Tensor:
    """Normalised Gaussian histogram of every pixel's a and b, average-pooled afterwards.

    Pik-Fix (Xu et al., WACV 2023), sec. 3.3: h_k ∝ exp(-(x - u_k)² / 2σ²), normalised over k.
    Colours are binned before they are pooled: averaging colours first would grey them.
    Gradients reach ab and centres.

    Args:
        ab: [B, 2, H, W], a/110 and b/110; float16, bfloat16, float32 or float64.
        centres: [K], shared by a and b, or [2, K]; in the unit of ab.
        sigma: σ > 0, in the unit of ab.
        pool: side of the pooling window; divides H and W.

    Returns:
        [B, 2K, H/pool, W/pool] in the dtype of ab: K bins of a, then K of b; each K sum to 1.

    Raises:
        ValueError: a wrong shape, dtype or device, a non-positive sigma, or a pool that does
            not divide H and W.

    """
    name = "sphist"
    if not checks.is_tensor(ab, 4) or ab.dtype not in checks.FLOAT_DTYPES:
        checks.fail(name, "ab [B, 2, H, W] of floats", ab=ab)
    if checks.differ(ab.shape[1], 2):
        checks.fail(name, "ab [B, 2, H, W]", ab=ab)
    if not (checks.is_tensor(centres, 1) or checks.is_tensor(centres, 2)):
        checks.fail(name, "centres [K] or [2, K]", centres=centres)
    if centres.dtype not in checks.FLOAT_DTYPES or (centres.dim() == 2 and centres.shape[0] != 2):
        checks.fail(name, "centres [K] or [2, K] of floats", centres=centres)
    if checks.is_empty(ab) or checks.is_empty(centres):
        checks.fail(name, "at least one image, pixel and bin", ab=ab, centres=centres)
    if ab.device != centres.device:
        checks.fail(name, "ab and centres on one device", ab=ab, centres=centres)
    if not checks.is_positive(sigma):
        checks.fail(name, "sigma > 0", sigma=sigma)
    if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
        checks.fail(name, "pool >= 1", pool=pool)
    if any(isinstance(side, int) and side % pool for side in ab.shape[2:]):
        checks.fail(name, f"sides that are multiples of pool = {pool}", ab=ab)
    both = centres.expand(2, -1) if centres.dim() == 1 else centres
    result: Tensor = torch.ops.pikfix.sphist(ab, both, float(sigma), pool)
    return result
