"""Argument checks shared by the operations. They raise ValueError and name what they got.

Sizes that are symbolic while a model is being exported or compiled are not compared: a
comparison would become a guard and fix the size in the exported graph.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(tensor: object) -> str:
    """Shape, dtype and device of a tensor in a few words; the type of anything else."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    shape = ", ".join(str(size) for size in tensor.shape)
    return f"[{shape}] {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def fail(operation: str, expected: str, **got: object) -> NoReturn:
    """Raise the ValueError of one operation: what it expected, and what it got."""
    listed = ", ".join(
        f"{name} = {repr(value) if isinstance(value, (bool, int, float)) else describe(value)}"
        for name, value in got.items()
    )
    raise ValueError(f"{operation}: expected {expected}; got {listed}")


def is_tensor(tensor: object, dims: int) -> bool:
    """Whether this is a tensor of that many dimensions."""
    return isinstance(tensor, Tensor) and tensor.dim() == dims


def differ(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    """Whether two sizes are known to be different."""
    return isinstance(first, int) and isinstance(second, int) and first != second


def is_empty(tensor: Tensor) -> bool:
    """Whether a size of the tensor is known to be zero."""
    return any(isinstance(size, int) and size == 0 for size in tensor.shape)


def is_positive(number: object) -> bool:
    """Whether this is a finite number above zero."""
    return (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and math.isfinite(number)
        and number > 0
    )
