"""Half precision written into a network, for runtimes that take every type from the graph.

TensorRT 11 has strongly typed networks only: nothing decides for us which layer may be half. So
the decision is made here, while the network is traced: what costs time, convolutions and matrix
products, runs in half precision; what half precision damages, runs in islands of float32.
"""

# torch calls these with the positional arguments of its own operators.
# ruff: noqa: PLR0917

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pikfix.systems.pikfix.networks.tone import Tone

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_HALF: tuple[Callable[..., Any], ...] = (
    F.conv2d,
    torch.conv2d,
    F.conv_transpose2d,
    torch.conv_transpose2d,
    F.linear,
)

_WARP = "pikfix::correlation_warp"
_FLOAT32_OPERATORS = (_WARP, "pikfix::center_normalize", "pikfix::sphist")
"""At a temperature of 0.01 an error of 5e-4 in a correlation, half precision's rounding, changes a
weight by 5 %; a sum of squares over many positions overflows it."""

_ALIGNED: tuple[Callable[..., Any], ...] = (F.prelu, torch.prelu)
"""Take all their tensors in the type of the first."""


class _Typing(TorchFunctionMode):
    """Casts the tensors of each call as the tables say; everything else promotes."""

    def __init__(self, half: torch.dtype, half_warp: bool) -> None:
        super().__init__()
        self._half = half
        self._half_warp = half_warp

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _HALF:
            dtype = args[1].dtype  # of the weights, which say what runs in half precision
            return func(*_cast(args, dtype), **_cast(kwargs, dtype))
        if func is F.batch_norm or func is torch.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func in _ALIGNED:
            return func(*_cast(args, args[0].dtype), **_cast(kwargs, args[0].dtype))
        if self._half_warp and _operator(func) == _WARP:
            return func(*_cast(args, self._half), **_cast(kwargs, self._half))
        if _operator(func) in _FLOAT32_OPERATORS:
            return func(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        """Scale and shift with factors that were divided in float32 beforehand.

        A constant scale after a convolution of its own type is folded into it.
        """
        if training:
            raise ValueError("a network is exported in evaluation mode")
        scale = weight.float() * torch.rsqrt(running_var.float() + eps)
        shift = bias.float() - running_mean.float() * scale
        shape = (1, -1, *([1] * (x.ndim - 2)))
        return x * scale.to(x.dtype).reshape(shape) + shift.to(x.dtype).reshape(shape)


class MixedPrecision(nn.Module):
    """A network that computes in half precision between float32 inputs and float32 outputs.

    Args:
        module: in evaluation mode; it is copied.
        precision: a key of `DTYPES`.
        half_warp: leave the correlation warp in half precision, for a kernel that keeps its
            softmax and its sums in float32 itself.
    """

    def __init__(self, module: nn.Module, precision: str, *, half_warp: bool = False) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.precision = precision
        # Stored in half precision: no runtime has to find out that a cast of weights is constant.
        # The tone stays in float32: it costs nothing, and its error is one of the whole photo.
        kept = {
            p for tone in self.module.modules() if isinstance(tone, Tone) for p in tone.modules()
        }
        # TensorRT for RTX 1.7 builds transposed convolutions in float16 and not in bfloat16.
        kinds = (nn.Conv2d, nn.Linear, *([nn.ConvTranspose2d] if precision == "fp16" else []))
        for layer in self.module.modules():
            if isinstance(layer, kinds) and layer not in kept:
                layer.to(DTYPES[precision])
        self._half_warp = half_warp

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        with _Typing(DTYPES[self.precision], self._half_warp):
            outputs = self.module(*inputs)
        if isinstance(outputs, Tensor):
            return outputs.float()
        return tuple(output.float() for output in outputs)


def typed(module: nn.Module, precision: str, *, half_warp: bool = False) -> nn.Module:
    """A network in the types of a precision; in any but those of `DTYPES`, as it is."""
    if precision not in DTYPES:
        return module
    return MixedPrecision(module, precision, half_warp=half_warp)


def _operator(func: Callable[..., Any]) -> str:
    name = getattr(func, "_qualified_op_name", None) or getattr(func, "name", "")
    return str(name() if callable(name) else name).split(".")[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value
