"""Inference forms: trained sub-nets rearranged for serving, with the same weights.

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
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.networks.blocks import DenseBlock, DenseUnit, ResidualDenseBlock
from pikfix.networks.config import PYRAMID_LEVELS, PikFixConfig
from pikfix.networks.model import PikFix, to_working
from pikfix.networks.quantized import quantize, vnni_supported
from pikfix.networks.similarity import Matches, Similarity, change_scale

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Of the arithmetic. `int8` is `pikfix.networks.quantized`'s; similarity, whose softmax magnifies
every rounding, then runs in bfloat16."""

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.bfloat16,
}
"""Of whatever is not in bytes."""

_FORMAT = "pikfix inference step"
_RANGE = "range."
"""Prefix of the names of activation ranges in the file of an int8 step."""

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_TONE = "tone."
"""Prefix of restoration's weights that stay in float32: an error of the tone is one of the whole
photo's brightness, and no average of many makes it small."""

_LANES = 32
"""Row strides of buffers are multiples of this: 64 bytes of bfloat16, one cache line."""


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
    """`ResidualDenseBlock` that rectifies and adds in place, for inference."""

    def __init__(self, block: ResidualDenseBlock) -> None:
        super().__init__()
        self.units, self.fuse = block.units, block.fuse

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for unit in self.units:
            features = torch.cat((features, unit(features).relu_()), dim=1)
        fused: Tensor = self.fuse(features)
        return fused.add_(x)


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
        return super()._features(_reduced(luminance, self.dtype))

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


def reduced_similarity(
    model: PikFix, precision: str, device: torch.device | str = "cpu"
) -> ReducedSimilarity:
    """The similarity sub-net in its inference form, on a device.

    Args:
        model: the trained networks; copied.
        precision: "fp32", "fp16" or "bf16". "fp16" is for GPUs: hardly a CPU multiplies it
            faster, and most far slower, so that a CPU computes in float32 instead.
        device: where it will run.

    Raises:
        ValueError: another precision.
    """
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in dtypes:
        raise ValueError(f"similarity runs in {', '.join(dtypes)}, not in {precision!r}")
    on_cpu = torch.device(device).type == "cpu"
    dtype = torch.float32 if on_cpu and precision == "fp16" else dtypes[precision]
    network = ReducedSimilarity(model.similarity, dtype).to(device).eval()
    return network.requires_grad_(False)


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


def save_step(
    network: nn.Module,
    config: PikFixConfig,
    name: str,
    precision: Precision,
    path: Path,
    *,
    ranges: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one sub-net's weights with what its inference form needs, as safetensors.

    Args:
        network: the trained sub-net.
        config: of the whole network.
        name: "restore", "similarity" or "colorize".
        precision: of the arithmetic.
        path: the file.
        ranges: of the inputs of its convolutions; needed for int8 except by similarity.
    """
    # What is quantized when it is loaded is not rounded before.
    dtype = torch.float32 if precision == "int8" else _DTYPES[precision]
    state = {
        key: value.detach().to(_stored(key, value, dtype)).contiguous()
        for key, value in network.state_dict().items()
    }
    state |= {f"{_RANGE}{key}": value.contiguous() for key, value in (ranges or {}).items()}
    header = {
        "format": _FORMAT,
        "name": name,
        "precision": precision,
        "config": json.dumps(config.to_dict()),
    }
    save_file(state, path, metadata=header)


def _stored(key: str, value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() and not key.startswith(_TONE) else value.dtype


def load_step(path: Path, device: str | torch.device = "cpu") -> InferenceStep:
    """Load what `save_step` wrote.

    Args:
        path: the file.
        device: where it is to compute; int8 is for a CPU.

    Raises:
        ValueError: the file is no such file, does not fit its configuration, or needs a CPU with
            instructions that this one lacks.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT:
            raise ValueError("it was not written by `pikfix export --runtime pytorch`")
        if header["precision"] not in get_args(Precision):
            raise ValueError(f"its precision {header['precision']} is unknown")
        ranges = {
            key.removeprefix(_RANGE): state.pop(key)
            for key in list(state)
            if key.startswith(_RANGE)
        }
        model = PikFix(PikFixConfig.from_dict(json.loads(header["config"])))
        _subnet(model, header["name"]).load_state_dict(state)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be used ({error}): export again") from error
    precision: Any = header["precision"]
    if precision == "int8" and not vnni_supported():
        raise ValueError(
            f"{path} is int8, which this CPU has no instructions for (VNNI or AMX): export again "
            "with --precision bf16 or fp32"
        )
    if precision == "int8" and torch.device(device).type != "cpu":
        raise ValueError(f"{path} is int8, which is for a CPU: export again with --precision fp16")
    return InferenceStep(model, header["name"], precision, ranges).to(device)


def _subnet(model: PikFix, name: str) -> nn.Module:
    return {
        "restore": model.restoration,
        "similarity": model.similarity,
        "colorize": model.colorization,
    }[name]


def _reduced(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


class InferenceStep(nn.Module):
    """A served sub-net in its inference form: float32 tensors in and out, by the contract's names.

    Args:
        model: the trained networks; copied, not changed.
        name: "restore", "similarity" or "colorize".
        precision: of the arithmetic.
        ranges: of the inputs of its convolutions; needed for int8 except by similarity.
    """

    def __init__(
        self,
        model: PikFix,
        name: str,
        precision: Precision,
        ranges: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.precision = name, precision
        self.dtype = dtype = _DTYPES[precision]
        if name == "similarity":
            self.network: nn.Module = ReducedSimilarity(model.similarity, dtype)
        else:
            network: Any = copy.deepcopy(_subnet(model, name)).eval()
            if precision == "int8":
                with torch.no_grad():
                    quantize(network, ranges or {})
            tone = getattr(network, "tone", None)
            if tone is not None:
                network.tone = None
            network.to(dtype=dtype, memory_format=torch.channels_last)
            _replace(network)
            if tone is not None:
                network.tone = tone
            self.network = network
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run on float32 tensors with a batch dimension; the outputs are contiguous float32."""
        if self.name == "restore":
            photo_l = inputs["photo_l"]
            return self.finished(photo_l, self.mended(photo_l))
        network: Any = self.network
        if self.name == "colorize":
            levels = range(1, PYRAMID_LEVELS + 1)
            ab = network(
                _reduced(inputs["working_l"], self.dtype),
                tuple(_reduced(inputs[f"warped_{i}"], self.dtype) for i in levels),
                tuple(_reduced(inputs[f"confidence_{i}"], self.dtype) for i in levels),
            )
            return {"ab": ab.float().contiguous()}
        warped, confidence, share = network.with_share(inputs["working_l"], inputs["reference_lab"])
        outputs = {"reference_share": share}
        for level, (colours, best) in enumerate(zip(warped, confidence, strict=True), 1):
            outputs[f"warped_{level}"] = colours.float().contiguous()
            outputs[f"confidence_{level}"] = best.float().contiguous()
        return outputs

    @torch.inference_mode()
    def mended(self, photo_l: Tensor) -> Tensor:
        """The part of `restore` that may be run on tiles: `[B, 1, H, W]` in and out."""
        network: Any = self.network
        change: Tensor = network.change(_reduced(photo_l, self.dtype))
        return (photo_l + change).clamp(-1, 1).contiguous()

    @torch.inference_mode()
    def finished(self, photo_l: Tensor, mended_l: Tensor) -> dict[str, Tensor]:
        """The rest of `restore`, which needs whole photos: both its outputs."""
        network: Any = self.network
        restored_l = network.toned(photo_l, mended_l).contiguous()
        return {"restored_l": restored_l, "working_l": to_working(restored_l)}


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, DenseBlock):
            setattr(module, name, InPlaceDenseBlock(child))
        elif isinstance(child, ResidualDenseBlock):
            setattr(module, name, LeanResidualDenseBlock(child))
        else:
            _replace(child)
