"""The similarity sub-net as a python step: its correlation runs on the fused operators.

The N x M map is never written, so memory is linear in both pictures. Tensors pass by DLPack: on a
GPU nothing goes through the host. Needs torch and pikfix in the server's environment.

Inputs, with a batch dimension B:
    working_l      FP32 [B, 1, h, w]            sides multiples of 32
    reference_lab  FP32 [B, R, 3, H_r, W_r]     sides multiples of 32
Outputs:
    warped_1..4    FP32 [B, 2K, h/2^(i+1), w/2^(i+1)]
    confidence_1..4 FP32 [B, 1, h/2^(i+1), w/2^(i+1)]
    reference_share FP32 [B, R]

A request that fails answers ``[similarity] code: message``; others of its batch go on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from pikfix.networks import SIDE_MULTIPLE, load_checkpoint
from pikfix.photos import PhotoError
from pikfix.photos.responses import respond
from pikfix.photos.steps import check_deadline

STEP = "similarity"
RANKS = {"working_l": 4, "reference_lab": 5}


class TritonPythonModel:
    """The step as the server's python backend runs it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint beside this file."""
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_flush_denormal(True)
        folder = Path(args["model_repository"]) / args["model_version"]
        self.similarity = load_checkpoint(folder / "checkpoint.safetensors", self.device).similarity

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        return [respond(pb_utils, STEP, self._match, request) for request in requests]

    def _match(self, request: Any) -> dict[str, torch.Tensor]:
        check_deadline(request.parameters())
        inputs = [self._input(request, name) for name in RANKS]
        with torch.inference_mode():
            warped, confidence, share = self.similarity.with_share(*inputs)
        outputs = {"reference_share": share}
        for level, (colours, best) in enumerate(zip(warped, confidence, strict=True), 1):
            outputs[f"warped_{level}"] = colours.contiguous()
            outputs[f"confidence_{level}"] = best.contiguous()
        return outputs

    def _input(self, request: Any, name: str) -> torch.Tensor:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        values = from_dlpack(tensor.to_dlpack()).to(self.device)
        shape = list(values.shape)
        if values.ndim != RANKS[name] or not values.numel():
            raise PhotoError("bad_tensor", f"{name} has shape {shape}")
        if any(side % SIDE_MULTIPLE for side in shape[-2:]):
            raise PhotoError(
                "bad_tensor",
                f"{name} is {shape[-2]} x {shape[-1]}; "
                f"pad both sides to multiples of {SIDE_MULTIPLE}",
            )
        if not bool(values.isfinite().all()):
            raise PhotoError("bad_tensor", f"{name} holds NaN or infinity; send finite values")
        return values
