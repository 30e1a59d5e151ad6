"""The similarity sub-net as a python step: its correlation runs on the fused operators.

The N x M map is never written, so memory is linear in both pictures. Tensors come from the host
and go there: what a python step answers from a GPU may arrive as what lay in the buffer before
(`pikfix.serving.device_network`). Requests of equal shapes are one batch to the network. Needs
torch and pikfix in the server's environment.

Parameter of the config:
    precision      "fp32" (the default), "fp16" or "bf16", of what bears it

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

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from pikfix.inference import reduced_similarity
from pikfix.layers.sizes import SIDE_MULTIPLE
from pikfix.photos import PhotoError
from pikfix.photos.responses import respond
from pikfix.photos.steps import check_deadline
from pikfix.systems.pikfix.networks import load_checkpoint

STEP = "similarity"
RANKS = {"working_l": 4, "reference_lab": 5}
WARM_UP_SIDES = (32, 256)
"""Sides of squares after which every kernel is compiled: with one split of the keys and with
several. Nothing else of a kernel depends on sizes."""

Inputs = tuple[Tensor, ...]
Outputs = Mapping[str, Tensor]
Answer = Mapping[str, npt.NDArray[Any]]


class TritonPythonModel:
    """The step as the server's python backend runs it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint beside this file; on a GPU, have the kernels compiled."""
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        # Beside a GPU the host only copies.
        torch.set_num_threads(1 if on_gpu else len(os.sched_getaffinity(0)))
        torch.set_flush_denormal(True)
        parameters = json.loads(args["model_config"]).get("parameters", {})
        precision = parameters.get("precision", {"string_value": "fp32"})["string_value"]
        folder = Path(args["model_repository"]) / args["model_version"]
        model = load_checkpoint(folder / "checkpoint.safetensors")
        self.similarity = reduced_similarity(model, precision, self.device)
        if on_gpu:
            self.warm_up()

    def warm_up(self) -> None:
        """Run once what the first requests would wait for."""
        for side in WARM_UP_SIDES:
            photo = torch.zeros(1, 1, side, side, device=self.device)
            self._match((photo, photo[:, None].expand(-1, -1, 3, -1, -1).contiguous()))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests of equal shapes by one run; a bad one fails alone."""
        outcomes: dict[int, Outputs | Exception] = {}
        groups: dict[tuple[torch.Size, ...], dict[int, Inputs]] = {}
        for index, request in enumerate(requests):
            try:
                inputs = self._read(request)
            except Exception as error:
                outcomes[index] = error
            else:
                shapes = tuple(tensor.shape[1:] for tensor in inputs)
                groups.setdefault(shapes, {})[index] = inputs
        for group in groups.values():
            try:
                outcomes.update(self._match_group(group))
            except Exception as error:
                outcomes.update(dict.fromkeys(group, error))
        answers = (functools.partial(_result, outcomes[index]) for index in range(len(requests)))
        return [
            respond(pb_utils, STEP, answer, request)
            for answer, request in zip(answers, requests, strict=True)
        ]

    def _match_group(self, group: dict[int, Inputs]) -> dict[int, Outputs]:
        sizes = [inputs[0].shape[0] for inputs in group.values()]
        merged = tuple(torch.cat(parts) for parts in zip(*group.values(), strict=True))
        parts = {name: values.split(sizes) for name, values in self._match(merged).items()}
        return {
            index: {name: values[position] for name, values in parts.items()}
            for position, index in enumerate(group)
        }

    def _match(self, inputs: Inputs) -> Outputs:
        with torch.inference_mode():
            warped, confidence, share = self.similarity.with_share(*inputs)
        outputs = {"reference_share": share}
        for level, (colours, best) in enumerate(zip(warped, confidence, strict=True), 1):
            outputs[f"warped_{level}"] = colours
            outputs[f"confidence_{level}"] = best
        return {name: values.float().cpu().contiguous() for name, values in outputs.items()}

    def _read(self, request: Any) -> Inputs:
        check_deadline(request.parameters())
        inputs = tuple(self._input(request, name) for name in RANKS)
        if inputs[0].shape[0] != inputs[1].shape[0]:
            raise PhotoError(
                "bad_tensor",
                f"{inputs[0].shape[0]} photos with references for {inputs[1].shape[0]}",
            )
        return inputs

    def _input(self, request: Any, name: str) -> torch.Tensor:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        values = torch.from_numpy(tensor.as_numpy()).to(self.device)
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


def _result(outcome: Outputs | Exception, _: Any) -> Answer:
    if isinstance(outcome, Exception):
        raise outcome
    return {name: values.numpy() for name, values in outcome.items()}
