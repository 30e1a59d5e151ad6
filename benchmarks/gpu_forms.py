"""The campaign's candidate forms of residual dense blocks: measured before the product takes one.

The served form copies all features of a block together before each of its convolutions; on an H200
those copies were the largest part of restoration, and its bias the next (results/gpu-h200.md).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from gpu_networks import build, inference_step, photo_like
from gpu_rows import Plan, Row, Rows
from gpu_timing import timed
from torch import Tensor, nn

from pikfix.evaluation.parity import compare
from pikfix.inference import InferenceStep
from pikfix.inference.forms import LeanResidualDenseBlock
from pikfix.serving.graphs import Named
from pikfix.systems.base import Precision
from pikfix.systems.registry import system_of

STEPS = ("restore", "colorize")
"""Those with residual dense blocks."""


class SummedBlock(nn.Module):
    """Each feature map is convolved once, for all units that follow, and the results are summed.

    A convolution of joined maps is the sum of theirs: nothing is joined but once, at the end, and
    convolutions have many output channels instead of few. Sums between are rounded.
    """

    def __init__(self, block: LeanResidualDenseBlock) -> None:
        super().__init__()
        units = [unit for unit in block.units if isinstance(unit, nn.Conv2d)]
        self.growth = units[0].out_channels
        channels = units[0].in_channels
        starts = [0, *(channels + self.growth * i for i in range(len(units)))]
        self.spread = nn.ModuleList()
        for index in range(len(units)):
            part = slice(starts[index], starts[index + 1])
            weight = torch.cat([unit.weight[:, part] for unit in units[index:]])
            layer = nn.Conv2d(
                weight.shape[1], weight.shape[0], units[0].kernel_size, padding=1, bias=index == 0
            )
            layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
            if layer.bias is not None:
                biases = [unit.bias for unit in units if unit.bias is not None]
                layer.bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
            self.spread.append(layer.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.fuse = block.fuse

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        sums = self.spread[0](x)
        for index in range(len(self.spread)):
            features.append(sums[:, : self.growth].relu())
            sums = sums[:, self.growth :]
            if index + 1 < len(self.spread):
                sums += self.spread[index + 1](features[-1])
        fused: Tensor = self.fuse(torch.cat(features, dim=1))
        return fused.add_(x)


class FusedBlock(nn.Module):
    """Bias and rectification in the convolution's own kernel, of cuDNN."""

    def __init__(self, block: LeanResidualDenseBlock) -> None:
        super().__init__()
        self.units, self.fuse = block.units, block.fuse

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for unit in self.units:
            assert isinstance(unit, nn.Conv2d)
            given = (unit.weight, unit.bias, unit.stride, unit.padding, unit.dilation, unit.groups)
            new = torch.cudnn_convolution_relu(features, *given)  # type: ignore[attr-defined]
            features = torch.cat((features, new), dim=1)
        fused: Tensor = self.fuse(features)
        return fused.add_(x)


class PlacedBlock(nn.Module):
    """New features are written behind the earlier ones, in one buffer (on CPUs a little slower)."""

    def __init__(self, block: LeanResidualDenseBlock) -> None:
        super().__init__()
        self.units, self.fuse = block.units, block.fuse

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.fuse, nn.Conv2d)
        batch, filled, height, width = x.shape
        buffer = x.new_empty(batch, height, width, self.fuse.in_channels).permute(0, 3, 1, 2)
        buffer[:, :filled] = x
        given = x
        for unit in self.units:
            new = unit(given)
            end = filled + new.shape[1]
            torch.clamp_min(new, 0, out=buffer[:, filled:end])
            filled, given = end, buffer[:, :end]
        fused: Tensor = self.fuse(given)
        return fused.add_(x)


FORMS: dict[str, Callable[[LeanResidualDenseBlock], nn.Module]] = {
    "served": lambda block: block,
    "summed": SummedBlock,
    "placed": PlacedBlock,
    "fused": FusedBlock,
}


def forms_on(device: str) -> list[str]:
    """The forms that a device has the operations for."""
    return [form for form in FORMS if device == "cuda" or form != "fused"]


def with_form(step: InferenceStep, form: str) -> InferenceStep:
    """A copy of a step whose residual dense blocks have a form."""
    changed = copy.deepcopy(step)
    for module in list(changed.modules()):
        for name, child in module.named_children():
            if isinstance(child, LeanResidualDenseBlock):
                setattr(module, name, FORMS[form](child))
    return changed


def forms(plan: Plan, rows: Rows) -> None:
    """Every form of every step that has such blocks: compared with the served one, then timed."""
    precision: Precision = "fp16" if plan.on_gpu else "fp32"
    side, batch = plan.sides[0], plan.batches[0]
    for name in plan.networks:
        model = build(plan, name)
        known = {n: t.to(plan.device) for n, t in photo_like(batch, side, 1, side, 1).items()}
        with torch.inference_mode():
            for step in system_of("pikfix").step_names:
                network = inference_step(model, step, precision, plan.device)
                inputs = {tensor.name: known[tensor.name] for tensor in network.step.inputs}
                expected = network(inputs)
                known.update(expected)
                for form in forms_on(plan.device) if step in STEPS else ():
                    rows.measure(
                        f"{name} {precision}, {side} x {side}, batch {batch}, {step}, {form}",
                        functools.partial(_timed, plan, network, form, inputs, expected),
                    )


def _timed(plan: Plan, network: InferenceStep, form: str, inputs: Named, expected: Named) -> Row:
    changed = with_form(network, form)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        found = changed(inputs)
        worst = min(
            compare(expected[n].cpu().numpy(), value.cpu().numpy()).psnr
            for n, value in found.items()
        )
        if not worst > 50:
            raise ArithmeticError(f"{worst:.1f} dB from the served form: not timed")
        times = timed(lambda: changed(inputs), plan.device, plan.seconds)
    finally:
        torch.backends.cudnn.benchmark = before
    return {"form": form, "psnr": None if worst == float("inf") else worst, "milliseconds": times}
