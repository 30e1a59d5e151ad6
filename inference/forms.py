"""Inference forms: trained networks rearranged for serving, with the same weights.

A dense block, written plainly, copies everything that came before into a new tensor and rectifies
all of it once per unit, which on a CPU is memory traffic worth avoiding. Here each unit's
output is written once, into a buffer that every later unit reads in place. A 1 x 1 convolution over
the leading channels of such a buffer is a matrix product with a row stride, which the libraries
under PyTorch take as it is. (3 x 3 convolutions want their input dense, so residual dense blocks
keep their concatenations.) On a GPU the same form runs, in float16 or bfloat16.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.inference.quantized import quantize
from pikfix.layers.blocks import DenseBlock, DenseUnit, Entry, ResidualDenseBlock
from pikfix.systems.base import Precision
from pikfix.systems.pikfix.networks.similarity import Matches, Similarity, change_scale

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.bfloat16,
}
"""Of whatever is not in bytes."""

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_LANES = 32
"""Row strides of buffers are multiples of this: 64 bytes of bfloat16, one cache line."""


def lower(
    module: nn.Module,
    precision: Precision,
    ranges: Mapping[str, Tensor] | None = None,
    *,
    channel_multiple: int = 1,
) -> nn.Module:
    """The inference form of a module, by the kinds of its layers.

    Args:
        module: trained; copied, not changed.
        precision: of the arithmetic.
        ranges: of the inputs of its convolutions; needed for int8.
        channel_multiple: what the channels of residual dense blocks are filled up to with zeros; a
            GPU's matrix units take whole eights, and other numbers by way of copies.

    Returns:
        A module with the same inputs and outputs, of which those that its arithmetic gives are in
        the precision's dtype.
    """
    lowered = copy.deepcopy(module).eval()
    if precision == "int8":
        with torch.no_grad():
            quantize(lowered, ranges or {})
    dtype = DTYPES[precision]
    _cast(lowered, dtype)
    _replace(lowered, channel_multiple)
    for part in lowered.modules():
        if isinstance(part, Entry):
            part.dtype = dtype
    return lowered.requires_grad_(False)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring weights into a dtype; similarity, which has no single one, into its own form."""
    for name, child in module.named_children():
        if isinstance(child, Similarity):
            setattr(module, name, ReducedSimilarity(child, dtype))
        elif any(isinstance(part, Similarity) for part in child.modules()):
            _cast(child, dtype)
        else:
            child.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _replace(module: nn.Module, channel_multiple: int) -> None:
    """Put inference forms in place of blocks."""
    for name, child in module.named_children():
        if isinstance(child, DenseBlock):
            setattr(module, name, InPlaceDenseBlock(child))
        elif isinstance(child, ResidualDenseBlock):
            setattr(module, name, LeanResidualDenseBlock(child, channel_multiple))
        else:
            _replace(child, channel_multiple)


class InPlaceDenseBlock(nn.Module):
    """`DenseBlock` on one buffer, for inference.

    `[B, channels, H, W]` to `[B, channels + growth * units, H, W]`, in channels_last order.
    """

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        units = [unit for unit in block.units if isinstance(unit, DenseUnit)]
        self.out_channels = block.out_channels
        self.squeezes = nn.ModuleList(unit.squeeze for unit in units)
        self.expands = nn.ModuleList(unit.expand for unit in units)

    def forward(self, x: Tensor) -> Tensor:
        batch, filled, height, width = x.shape
        stride = -(-self.out_channels // _LANES) * _LANES
        plain = x.new_empty(batch, height, width, stride)
        rectified = torch.empty_like(plain)
        _write(plain, rectified, x, 0)
        for squeeze, expand in zip(self.squeezes, self.expands, strict=True):
            assert isinstance(squeeze, nn.Conv2d)
            rows = rectified.view(-1, stride)[:, :filled]
            narrow = F.linear(rows, squeeze.weight.flatten(1), squeeze.bias).relu_()
            narrow = narrow.view(batch, height, width, -1).permute(0, 3, 1, 2)
            filled = _write(plain, rectified, expand(narrow), filled)
        return plain[..., :filled].permute(0, 3, 1, 2)


def _write(plain: Tensor, rectified: Tensor, part: Tensor, start: int) -> int:
    """Write `[B, c, H, W]` into channels `start`... of both buffers; the count of filled ones."""
    end = start + part.shape[1]
    rows = part.permute(0, 2, 3, 1)
    plain[..., start:end] = rows
    rectified[..., start:end] = rows
    rectified[..., start:end].relu_()
    return end


class LeanResidualDenseBlock(nn.Module):
    """`ResidualDenseBlock` that rectifies and adds in place, for inference.

    Each unit's output may be filled up with channels of zeros, which nothing reads.
    """

    def __init__(self, block: ResidualDenseBlock, channel_multiple: int = 1) -> None:
        super().__init__()
        units = [unit for unit in block.units if isinstance(unit, nn.Conv2d)]
        growth = units[0].out_channels
        filled = -(-growth // channel_multiple) * channel_multiple
        self.units, self.fuse = block.units, block.fuse
        if filled != growth:
            start = units[0].in_channels
            self.units = nn.ModuleList(
                _spread(unit, start, growth, filled, out_channels=filled) for unit in units
            )
            self.fuse = _spread(block.fuse, start, growth, filled, out_channels=start)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for unit in self.units:
            features = torch.cat((features, unit(features).relu_()), dim=1)
        fused: Tensor = self.fuse(features)
        return fused.add_(x)


def _spread(
    layer: nn.Conv2d, start: int, growth: int, filled: int, *, out_channels: int
) -> nn.Conv2d:
    """A convolution whose inputs, after the first `start`, come in groups filled up with zeros."""
    groups = (layer.in_channels - start) // growth
    side = layer.kernel_size[0]
    spread = nn.Conv2d(start + groups * filled, out_channels, side, padding=side // 2)
    weight = layer.weight.new_zeros(out_channels, spread.in_channels, *layer.kernel_size)
    given = layer.weight.detach()
    weight[: layer.out_channels, :start] = given[:, :start]
    for group in range(groups):
        to, of = start + group * filled, start + group * growth
        weight[: layer.out_channels, to : to + growth] = given[:, of : of + growth]
    bias = weight.new_zeros(out_channels)
    if layer.bias is not None:
        bias[: layer.out_channels] = layer.bias.detach()
    spread.weight, spread.bias = nn.Parameter(weight), nn.Parameter(bias)
    return spread.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class ReducedSimilarity(Similarity):
    """`Similarity` with its convolutions and products in another dtype, for inference.

    Normalisation, and sums and softmax of the correlation, stay in float32: at a temperature of
    0.01 an error of a correlation is multiplied by a hundred before it enters an exponential. That
    of queries and keys rounded to bfloat16, 1e-4 over hundreds of channels, bears it.
    """

    def __init__(self, source: Similarity, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(source).__dict__)
        self.dtype = dtype
        if self.mode != "none":
            for network in (self.backbone, self.adapters, self.filter):
                network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _features(self, luminance: Tensor) -> list[Tensor]:
        return super()._features(_channels_last(luminance, self.dtype))

    def _matches(self, working_l: Tensor, reference_lab: Tensor) -> list[Matches]:
        found = super()._matches(working_l, reference_lab)
        return [(query.to(self.dtype), key.to(self.dtype), size) for query, key, size in found]

    def _match_features(self, features: list[Tensor], scale: int) -> Tensor:
        parts = [
            change_scale(self.coefficients[scale, stage].to(self.dtype) * feature, stage, scale)
            for stage, feature in enumerate(features)
        ]
        matched: Tensor = self.filter(torch.cat(parts, dim=1))
        return matched.float()


def keep_free_memory() -> None:
    """Let malloc keep what is freed (glibc only), for networks that allocate every activation.

    By default it maps large blocks anew each time and gives them back at once, and the system
    fills every page with zeros again: a fifth of the time of a bfloat16 network on a CPU.
    malloc_trim(3) still hands everything back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
