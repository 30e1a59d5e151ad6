"""The tensor contract: every served model, its inputs and outputs.

One description feeds the ONNX export (names, dynamic axes), the config.pbtxt files, the parity
gate and the tests. Shapes leave the batch dimension out, as Triton's configs do; -1 is any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pikfix.networks import PYRAMID_LEVELS, PikFixConfig

DataType = Literal["FP32", "BYTES"]

SUBNETS = ("restore", "similarity", "colorize")
"""The models that export writes from a checkpoint, in the order a photo passes them."""

PYTHON_STEPS = ("decode_photo", "encode_photo")
ENSEMBLES = ("pikfix", "pikfix_photo")


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, type and shape without the batch dimension."""

    name: str
    dims: tuple[int, ...]
    data_type: DataType = "FP32"
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """A served model's inputs and outputs."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


PHOTO_L = Tensor("photo_l", (1, -1, -1))
WHOLE = Tensor("whole", ())
"""An input of `restore`'s ONNX file beside the contract's, with the default 1: a server that
restores in tiles gives 0, which leaves out what only a whole photo tells."""
MENDED_L = Tensor("mended_l", (1, -1, -1))
RESTORED_L = Tensor("restored_l", (1, -1, -1))
WORKING_L = Tensor("working_l", (1, -1, -1))
REFERENCE_LAB = Tensor("reference_lab", (-1, 3, -1, -1))
AB = Tensor("ab", (2, -1, -1))
CONFIDENCE = tuple(Tensor(f"confidence_{i + 1}", (1, -1, -1)) for i in range(PYRAMID_LEVELS))
SHARE = Tensor("reference_share", (-1,))
PHOTO_INFO = Tensor("photo_info", (1,), "BYTES")
PHOTO = Tensor("photo", (1,), "BYTES")
REFERENCE = Tensor("reference", (-1,), "BYTES", optional=True)
OPTIONS = Tensor("options", (1,), "BYTES", optional=True)
RESULT = Tensor("result", (1,), "BYTES")
REPORT = Tensor("report", (1,), "BYTES")


def subnets(config: PikFixConfig) -> tuple[Model, ...]:
    """The three sub-nets of a configuration, which sets the channels of the warped maps."""
    warped = tuple(
        Tensor(f"warped_{i + 1}", (config.warped_channels, -1, -1)) for i in range(PYRAMID_LEVELS)
    )
    return (
        Model("restore", (PHOTO_L,), (RESTORED_L, WORKING_L)),
        Model("similarity", (WORKING_L, REFERENCE_LAB), (*warped, *CONFIDENCE, SHARE)),
        Model("colorize", (WORKING_L, *warped, *CONFIDENCE), (AB,)),
    )


def python_steps() -> tuple[Model, ...]:
    """Files in, files out: the first and the last step of pikfix_photo."""
    return (
        Model("decode_photo", (PHOTO, REFERENCE, OPTIONS), (PHOTO_L, REFERENCE_LAB, PHOTO_INFO)),
        Model("encode_photo", (RESTORED_L, AB, *CONFIDENCE, SHARE, PHOTO_INFO), (RESULT, REPORT)),
    )


def ensembles() -> tuple[Model, ...]:
    """What clients call."""
    return (
        Model("pikfix", (PHOTO_L, REFERENCE_LAB), (RESTORED_L, AB)),
        Model("pikfix_photo", (PHOTO, REFERENCE, OPTIONS), (RESULT, REPORT)),
    )
