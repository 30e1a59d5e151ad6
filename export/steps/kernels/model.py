"""A network with a correlation as a python step: the correlation runs on the fused operators.

The N x M map is never written, so memory is linear in the pictures. Tensors come from the host and
go there: what a python step answers from a GPU may arrive as what lay in the buffer before
(`pikfix.serving.device_network`). Requests of equal shapes are one batch to the network. Needs
torch and pikfix in the server's environment.

The step is the one of the model's own name in the system of the checkpoint beside this file; its
declaration says what it takes and gives.

Parameter of the config:
    precision      "fp32" (the default), "fp16" or "bf16", of what bears it

A request that fails answers ``[NAME] code: message``; others of its batch go on.
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

from pikfix.inference import kernel_form
from pikfix.photos import PhotoError
from pikfix.photos.responses import respond
from pikfix.photos.steps import check_deadline
from pikfix.systems.base import (
    PHOTO_SIDES,
    REFERENCE_SIDES,
    REFERENCES,
    WORKING_SIDES,
    TensorSpec,
)
from pikfix.systems.checkpoint import load

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
        loaded = load(folder / "checkpoint.safetensors")
        self.step = next(step for step in loaded.steps if step.name == args["model_name"])
        module = loaded.modules[self.step.name]
        self.network = kernel_form(self.step, module, precision, self.device)
        if on_gpu:
            self.warm_up()

    def warm_up(self) -> None:
        """Run once what the first requests would wait for."""
        for side in WARM_UP_SIDES:
            sizes = dict.fromkeys((*PHOTO_SIDES, *WORKING_SIDES, *REFERENCE_SIDES), side)
            sizes[REFERENCES] = 1
            shapes = [(1, *tensor.sized(sizes)) for tensor in self.step.inputs]
            self._run(tuple(torch.zeros(shape, device=self.device) for shape in shapes))

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
                outcomes.update(self._run_group(group))
            except Exception as error:
                outcomes.update(dict.fromkeys(group, error))
        answers = (functools.partial(_result, outcomes[index]) for index in range(len(requests)))
        return [
            respond(pb_utils, self.step.name, answer, request)
            for answer, request in zip(answers, requests, strict=True)
        ]

    def _run_group(self, group: dict[int, Inputs]) -> dict[int, Outputs]:
        sizes = [inputs[0].shape[0] for inputs in group.values()]
        merged = tuple(torch.cat(parts) for parts in zip(*group.values(), strict=True))
        parts = {name: values.split(sizes) for name, values in self._run(merged).items()}
        return {
            index: {name: values[position] for name, values in parts.items()}
            for position, index in enumerate(group)
        }

    def _run(self, inputs: Inputs) -> Outputs:
        named = {spec.name: given for spec, given in zip(self.step.inputs, inputs, strict=True)}
        return {name: values.cpu() for name, values in self.network(named).items()}

    def _read(self, request: Any) -> Inputs:
        check_deadline(request.parameters())
        inputs = tuple(self._input(request, tensor) for tensor in self.step.inputs)
        counts = [len(values) for values in inputs]
        if len(set(counts)) > 1:
            names = ", ".join(tensor.name for tensor in self.step.inputs)
            raise PhotoError("bad_tensor", f"{names} must agree in batch size, got {counts}")
        return inputs

    def _input(self, request: Any, tensor: TensorSpec) -> torch.Tensor:
        given = pb_utils.get_input_tensor_by_name(request, tensor.name)
        values = torch.from_numpy(given.as_numpy()).to(self.device)
        shape = list(values.shape)
        fits = values.ndim == len(tensor.shape) + 1 and all(
            wanted in (-1, size) for wanted, size in zip(tensor.dims, shape[1:], strict=True)
        )
        if not fits or not values.numel():
            raise PhotoError("bad_tensor", f"{tensor.name} has shape {shape}")
        for size, symbol in zip(shape[1:], tensor.symbols, strict=True):
            multiple = self.step.side_multiple // (symbol[1] if symbol else 1)
            if symbol and symbol[0] != REFERENCES and multiple > 1 and size % multiple:
                raise PhotoError(
                    "bad_tensor",
                    f"{tensor.name} is {shape[-2]} x {shape[-1]}; "
                    f"pad both sides to multiples of {multiple}",
                )
        if not bool(values.isfinite().all()):
            raise PhotoError(
                "bad_tensor", f"{tensor.name} holds NaN or infinity; send finite values"
            )
        return values


def _result(outcome: Outputs | Exception, _: Any) -> Answer:
    if isinstance(outcome, Exception):
        raise outcome
    return {name: values.numpy() for name, values in outcome.items()}
