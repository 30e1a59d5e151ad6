"""Int8 forms of the convolutions where a trained network spends its time, for CPUs with VNNI.

Post-training quantization: activations are unsigned bytes with a step per channel, fixed beforehand
from ranges seen on sample pictures (`input_ranges`); weights are signed bytes with a step per
output channel; sums are exact 32-bit integers (oneDNN's u8 x s8 convolutions, as PyTorch ships
them). Steps of input channels are folded into the weights, those of output channels into their
scales, so that no step costs time. Within a dense block only bytes are concatenated: half of
bfloat16's traffic.

Everything between the blocks stays in bfloat16: stem, heads, transitions and outputs, and where
restoration's levels are fused and merged. They cost little, and errors there are not averaged out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.kernels import cpu
from pikfix.layers.blocks import DenseBlock, DenseUnit, ResidualDenseBlock
from pikfix.systems.pikfix.networks.colorization import DecoderStage, FusionModule
from pikfix.systems.pikfix.networks.restoration import Restoration

Ranges = Mapping[str, Tensor]
"""By the name of a convolution: lowest and highest value of each input channel, `[2, C]`."""

_ZERO = 128
"""The byte that stands for zero where values have signs."""

_SLICE = 1 << 18
"""Values rounded at a time: a megabyte in float32, about what a core's second cache holds."""

_operators: Any = torch.ops.onednn


def vnni_supported() -> bool:
    """Whether this CPU multiplies bytes without saturating, and this PyTorch convolves them."""
    return cpu.multiplies_bytes() and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def input_ranges(network: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Ranges of the inputs of all convolutions of `network` while `run` calls it."""
    ranges: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = torch.stack((inputs[0].amin(dim=(0, 2, 3)), inputs[0].amax(dim=(0, 2, 3))))
            known = ranges.get(name, seen)
            ranges[name] = torch.stack(
                (torch.minimum(known[0], seen[0]), torch.maximum(known[1], seen[1]))
            )

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.clone() for name, value in ranges.items()}


def _steps(low_high: Tensor, levels: int) -> Tensor:
    """The value of one unit of a byte for each channel of these ranges `[2, C]`.

    Halfway, geometrically, between what the channel's own range allows and what the widest needs.
    The steps are carried by the weights, so that very different ones would cost the weights the
    accuracy that activations gain; and all but the loudest channels have room to spare where other
    pictures go further than the samples.
    """
    highest = low_high.abs().amax(dim=0)
    loudest = highest.max().clamp_min(1e-6)
    # A channel that was zero on all samples may not be so elsewhere.
    highest = torch.maximum(highest, loudest / 32)
    steps: Tensor = torch.sqrt(highest * loudest) / levels
    return steps


class Int8Conv2d(nn.Module):
    """A convolution from bytes to bytes, or to bfloat16.

    Args:
        conv: with weights and bias in floating point.
        steps: value of one unit of each input channel, `[C]`.
        zero: the byte that stands for zero in the input.
        relu: rectify the output.
        output: steps `[C']` and zero of the output; None for bfloat16.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        steps: Tensor,
        *,
        zero: int,
        relu: bool = False,
        output: tuple[Tensor, int] | None = None,
    ) -> None:
        super().__init__()
        weight = conv.weight.detach().float() * steps.view(1, -1, 1, 1)
        scale = weight.abs().amax(dim=(1, 2, 3)).clamp_min(1e-12) / 127
        rounded = torch.round(weight / scale.view(-1, 1, 1, 1)).to(torch.int8)
        self.stride, self.padding = list(conv.stride), [int(side) for side in conv.padding]
        self.dilation = list(conv.dilation)
        self.zero = zero
        self.attribute = "relu" if relu else "none"
        self.zero_out = output[1] if output else 0
        self.dtype = torch.uint8 if output else torch.bfloat16
        # The steps of output channels are folded into the same scale.
        per_unit = 1 / output[0] if output else torch.ones_like(scale)
        self.scale = scale * per_unit
        self.zeros = torch.zeros(len(scale), dtype=torch.int64)
        self.bias = None if conv.bias is None else conv.bias.detach().float() * per_unit
        # Kept as it is packed: the layout is oneDNN's own, for this processor.
        self.packed = _operators.qconv_prepack(
            rounded, scale, 1.0, zero, self.stride, self.padding, self.dilation, 1, None
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` bytes in channels_last order to bytes or bfloat16."""
        out: Tensor = _operators.qconv2d_pointwise(
            x, 1.0, self.zero, self.packed, self.scale, self.zeros, self.bias,
            self.stride, self.padding, self.dilation, 1,
            1.0, self.zero_out, self.dtype, self.attribute, [], None,
        )  # fmt: skip
        return out


def to_bytes(x: Tensor, steps: Tensor, zero: int) -> Tensor:
    """Round `x` to unsigned bytes of `steps`, in channels_last order; what does not fit clips."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    out = torch.empty(rows.shape, dtype=torch.uint8)
    # Slice by slice: four passes over a slice stay in the cache, four over a picture do not.
    size = max(1, _SLICE // channels)
    scratch = torch.empty(min(size, len(rows)), channels)
    per_unit = 1 / steps
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        scaled = torch.mul(part, per_unit, out=scratch[: len(part)])
        # The cast truncates, so that half a unit more rounds.
        out[start : start + size] = scaled.add_(zero + 0.5).clamp_(0, 255)
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


class QuantizingConv2d(nn.Module):
    """A convolution from bfloat16 to bfloat16 that computes in bytes."""

    def __init__(self, conv: nn.Conv2d, low_high: Tensor) -> None:
        super().__init__()
        self.zero = 0 if float(low_high.min()) >= 0 else _ZERO
        self.steps = _steps(low_high, 255 - self.zero)
        self.conv = Int8Conv2d(conv, self.steps, zero=self.zero)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` bfloat16 in channels_last order."""
        out: Tensor = self.conv(to_bytes(x, self.steps, self.zero))
        return out


class Int8ResidualDenseBlock(nn.Module):
    """`ResidualDenseBlock` whose concatenations are bytes; bfloat16 in and out."""

    def __init__(self, block: ResidualDenseBlock, low_high: Tensor) -> None:
        super().__init__()
        units = [unit for unit in block.units if isinstance(unit, nn.Conv2d)]
        widths = [units[0].in_channels, *(unit.out_channels for unit in units)]
        parts = low_high.split(widths, dim=1)
        self.steps = [_steps(part, 255 - _ZERO) for part in parts]
        steps = torch.cat(self.steps)
        self.units = nn.ModuleList(
            Int8Conv2d(unit, steps[: unit.in_channels], zero=_ZERO, relu=True, output=(step, _ZERO))
            for unit, step in zip(units, self.steps[1:], strict=True)
        )
        self.fuse = Int8Conv2d(block.fuse, steps, zero=_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        features = to_bytes(x, self.steps[0], _ZERO)
        for unit in self.units:
            features = torch.cat((features, unit(features)), dim=1)
        fused: Tensor = self.fuse(features)
        return fused.add_(x)


class Int8DenseBlock(nn.Module):
    """`DenseBlock` on two buffers: what it answers, in bfloat16, and its rectification in bytes."""

    def __init__(self, block: DenseBlock, ranges: Ranges) -> None:
        super().__init__()
        units = [unit for unit in block.units if isinstance(unit, DenseUnit)]
        self.out_channels = block.out_channels
        # The last unit's input is everything that is ever read rectified.
        last = ranges[f"units.{len(units) - 1}.squeeze"]
        widths = [units[0].squeeze.in_channels, *(unit.expand.out_channels for unit in units[:-1])]
        self.steps = [_steps(part, 255) for part in last.split(widths, dim=1)]
        steps = torch.cat(self.steps)
        self.squeezes, self.expands = nn.ModuleList(), nn.ModuleList()
        for index, unit in enumerate(units):
            narrow = _steps(ranges[f"units.{index}.expand"], 255)
            read = steps[: unit.squeeze.in_channels]
            self.squeezes.append(
                Int8Conv2d(unit.squeeze, read, zero=0, relu=True, output=(narrow, 0))
            )
            self.expands.append(Int8Conv2d(unit.expand, narrow, zero=0))

    def forward(self, x: Tensor) -> Tensor:
        batch, filled, height, width = x.shape
        plain = x.new_empty(batch, height, width, self.out_channels)
        plain[..., :filled] = x.permute(0, 2, 3, 1)
        rectified = to_bytes(x, self.steps[0], 0)
        for index, (squeeze, expand) in enumerate(zip(self.squeezes, self.expands, strict=True)):
            new = expand(squeeze(rectified))
            end = filled + new.shape[1]
            plain[..., filled:end] = new.permute(0, 2, 3, 1)
            filled = end
            if index + 1 < len(self.squeezes):
                rectified = torch.cat((rectified, to_bytes(new, self.steps[index + 1], 0)), dim=1)
        return plain.permute(0, 3, 1, 2)


class Int8Merge(nn.Module):
    """A decoder's two rectified 3 x 3 convolutions over a concatenation, bytes between them."""

    def __init__(self, merge: nn.Sequential, ranges: Ranges, split: int) -> None:
        super().__init__()
        first, second = merge[0], merge[2]
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        refined, skip = ranges["0"][:, :split], ranges["0"][:, split:]
        self.steps = _steps(refined, 255 - _ZERO), _steps(skip, 255 - _ZERO)
        steps = torch.cat(self.steps)
        between = _steps(ranges["2"], 255)
        self.first = Int8Conv2d(first, steps, zero=_ZERO, relu=True, output=(between, 0))
        self.second = Int8Conv2d(second, between, zero=0, relu=True)

    def forward(self, refined: Tensor, skip: Tensor) -> Tensor:
        parts = [
            to_bytes(x, step, _ZERO) for x, step in zip((refined, skip), self.steps, strict=True)
        ]
        out: Tensor = self.second(self.first(torch.cat(parts, dim=1)))
        return out


class Int8DecoderStage(nn.Module):
    """`DecoderStage` that merges bytes."""

    def __init__(self, stage: DecoderStage, ranges: Ranges) -> None:
        super().__init__()
        self.refine = Int8ResidualDenseBlock(stage.refine, ranges["refine.fuse"])
        width = stage.refine.fuse.out_channels
        self.merge = Int8Merge(stage.merge, _below(ranges, "merge"), width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.merge(self.refine(x), skip)
        return out


def quantize(network: nn.Module, ranges: Ranges) -> None:
    """Put int8 forms in place of the blocks of a restoration or colorization network.

    Args:
        network: with float32 weights, in evaluation mode; changed.
        ranges: of the inputs of its convolutions, as `input_ranges` measures them.

    Raises:
        KeyError: `ranges` lacks a convolution: it was measured on another network.
    """
    if isinstance(network, Restoration):
        # The other levels cost a tenth of it, and each of their errors covers many pixels.
        quantize(network.levels[0], _below(ranges, "levels.0"))
        return
    for name, child in network.named_children():
        below = _below(ranges, name)
        if isinstance(child, DecoderStage):
            setattr(network, name, Int8DecoderStage(child, below))
        elif isinstance(child, ResidualDenseBlock):
            setattr(network, name, Int8ResidualDenseBlock(child, below["fuse"]))
        elif isinstance(child, DenseBlock):
            setattr(network, name, Int8DenseBlock(child, below))
        else:
            quantize(child, below)
            if isinstance(child, FusionModule):
                child.out = QuantizingConv2d(child.out, below["out"])  # type: ignore[assignment]


def _below(ranges: Ranges, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in ranges.items() if key.startswith(prefix)}
