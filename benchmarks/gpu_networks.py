"""The campaign's networks: parity with higher precision, speed in CUDA graphs, memory."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from gpu_rows import Plan, Row, Rows
from gpu_timing import timed
from safetensors.torch import load_file, save_file
from torch import Tensor

from pikfix.evaluation.parity import compare
from pikfix.inference import InferenceStep
from pikfix.serving.graphs import Named, Recording, recorder
from pikfix.systems.base import Precision, Step
from pikfix.systems.chain import run_chain
from pikfix.systems.pikfix.networks import PRESETS, PikFix, PikFixConfig, load_checkpoint
from pikfix.systems.registry import system_of

SYSTEM = system_of("pikfix")
STEPS = SYSTEM.step_names
REFERENCE_FILE = "references-compact.safetensors"
WORKING_BYTES = 8 << 30
"""A working size of 1024 x 1024 is to fit into this."""


def build(plan: Plan, name: str) -> PikFix:
    """A network of the plan: the shipped checkpoint, or one with seeded weights."""
    described = plan.networks[name]
    if described is None:
        return load_checkpoint(plan.checkpoint)
    config = PRESETS[described["preset"]] if "preset" in described else None
    torch.manual_seed(0)
    model = PikFix(config or PikFixConfig.from_dict(described))
    for layer in (model.restoration.output, model.colorization.output):
        torch.nn.init.normal_(layer.weight, std=0.02)  # at its start a network changes nothing
    return model.eval()


def photo_like(batch: int, side: int, references: int, reference_side: int, seed: int) -> Named:
    """Inputs of a batch of square photos: smooth fields with grain, within the usual ranges."""
    generator = torch.Generator().manual_seed(seed)

    def field(*shape: int) -> Tensor:
        coarse = torch.randn(*shape[:-2], shape[-2] // 8, shape[-1] // 8, generator=generator)
        flat = coarse.flatten(0, -3).unsqueeze(1)
        smooth = torch.nn.functional.interpolate(flat, shape[-2:], mode="bicubic")
        grain = 0.05 * torch.randn(*shape, generator=generator)
        return (0.4 * smooth.view(shape) + grain).clamp(-1, 1)

    return {
        "photo_l": field(batch, 1, side, side),
        "reference_lab": field(batch, references, 3, reference_side, reference_side),
    }


def chain(model: PikFix, known: Named) -> Named:
    """All tensors between the steps, in the precision of the model, from photo and reference."""
    found = dict(known)
    steps = SYSTEM.steps(model.config)
    for _, _, outputs in run_chain(steps, SYSTEM.modules(model, steps), known):
        found.update(outputs)
    return found


def step_of(model: PikFix, name: str) -> Step:
    """A step of a network's configuration."""
    return next(step for step in SYSTEM.steps(model.config) if step.name == name)


def inference_step(model: PikFix, name: str, precision: Precision, device: str) -> InferenceStep:
    """A step of a network in its inference form, on a device."""
    step = step_of(model, name)
    return InferenceStep(step, step.module(model), precision, device=device)


def write_references(checkpoint: Path, path: Path, side: int) -> None:
    """Compute in float64 what parity is measured against, and write it in float32."""
    model = load_checkpoint(checkpoint).double()
    known = {n: t.double() for n, t in photo_like(2, side, 2, side, seed=5).items()}
    found = {name: value.float().contiguous() for name, value in chain(model, known).items()}
    save_file(found, path)


def parity(plan: Plan, rows: Rows) -> None:
    """Each step, given what precedes it in the reference, in every precision.

    The shipped checkpoint is compared with float64 computed beforehand; what has seeded weights,
    whose digits depend on the machine, with float32 on this machine's CPU.
    """
    for name in plan.networks:
        if all(rows.has(f"{name} {p} {s}") for p in ("fp16", "bf16", "fp32") for s in STEPS):
            continue
        model = build(plan, name)
        file = None if plan.bundle is None else plan.bundle / REFERENCE_FILE
        carried = plan.networks[name] is None and file is not None and file.is_file()
        if carried and file is not None:
            known, source = load_file(file), "float64, computed beforehand"
        else:
            side = plan.parity_side
            known = chain(model, photo_like(1, side, 2, side, seed=5))
            source = "float32 on the CPU of this machine"
        for precision in ("fp16", "bf16", "fp32"):
            for step in STEPS:
                rows.measure(
                    f"{name} {precision} {step}",
                    functools.partial(
                        _compared, plan, model, step, precision, known, network=name, against=source
                    ),
                )


def _compared(
    plan: Plan, model: PikFix, step: str, precision: Precision, known: Named, **facts: str
) -> Row:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network = inference_step(model, step, precision, plan.device)
    inputs = {t.name: known[t.name].to(plan.device) for t in network.step.inputs}
    actual = network(inputs)
    figures = {n: compare(known[n].numpy(), actual[n].float().cpu().numpy()) for n in actual}
    finite = [f.psnr for f in figures.values() if np.isfinite(f.psnr)]
    return {
        **facts,
        "step": step,
        "precision": precision,
        "photo": list(known["photo_l"].shape),
        "max_abs": max(f.max_abs for f in figures.values()),
        "worst_tile": max(f.worst_tile for f in figures.values()),
        "psnr": min(finite) if finite else None,
    }


def networks(plan: Plan, rows: Rows) -> None:
    """Every step in a graph of its own, as the server runs it: times, photos a second, memory."""
    precision: Precision = "fp16" if plan.on_gpu else "fp32"
    for side in plan.sides:
        for name in plan.networks:
            model: PikFix | None = None
            for batch in plan.batches:
                key = f"{name} {precision}, {side} x {side}, batch {batch}"
                if rows.has(key):
                    continue
                model = model or build(plan, name)
                rows.measure(
                    key,
                    lambda m=model, b=batch, s=side, n=name: (  # type: ignore[misc]
                        _speed(plan, m, precision, batch=b, side=s) | {"network": n}
                    ),
                )
                if batch == plan.batches[0] and side == plan.sides[0]:
                    _profile(plan, rows, model, name, precision)
    for name in plan.networks:
        rows.measure(
            f"{name} {precision}, working size of {2 * plan.sides[0]}",
            lambda n=name: _working_memory(plan, build(plan, n), precision) | {"network": n},  # type: ignore[misc]
        )


def _speed(plan: Plan, model: PikFix, precision: Precision, *, batch: int, side: int) -> Row:
    torch.backends.cudnn.allow_tf32 = False
    _reset_memory(plan)
    steps = {s: inference_step(model, s, precision, plan.device) for s in STEPS}
    weights = _allocated(plan)
    known = {n: t.to(plan.device) for n, t in photo_like(batch, side, 1, min(side, 256), 1).items()}
    record = recorder(torch.device(plan.device))
    graphs = []  # alive until the peak is read, as in a server
    times: dict[str, Row] = {}
    with torch.inference_mode():
        for name, step in steps.items():
            inputs = {t.name: known[t.name] for t in step.step.inputs}
            graph = record(step, inputs)
            graphs.append(graph)
            graph.replay()
            known.update({n: value.clone() for n, value in graph.outputs.items()})
            if not all(bool(value.isfinite().all()) for value in graph.outputs.values()):
                raise ArithmeticError(f"{name} gives NaN or infinity: not timed")
            times[name] = _replays(graph, plan)
    total = sum(row["median"] for row in times.values())
    return {
        "precision": precision,
        "side": side,
        "batch": batch,
        "milliseconds": times,
        "share": {name: row["median"] / total for name, row in times.items()},
        "photos_per_second": 1000 * batch / total,
        "weights_bytes": weights,
        "peak_bytes": _peak(plan),
    }


def _replays(graph: Recording, plan: Plan) -> Row:
    """Replays of a graph, which cannot be recorded in another one."""
    if not plan.on_gpu:
        return timed(graph.replay, plan.device, plan.seconds)
    times = []
    for _ in range(40):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        times.append((start, stop))
        if len(times) >= 7 and len(times) % 4 == 0:
            torch.cuda.synchronize()
            if sum(a.elapsed_time(b) for a, b in times) > 1000 * plan.seconds:
                break
    torch.cuda.synchronize()
    found = sorted(a.elapsed_time(b) for a, b in times)
    return {"median": float(np.median(found)), "best": found[0], "runs": len(found), "graph": True}


def _profile(plan: Plan, rows: Rows, model: PikFix, name: str, precision: Precision) -> None:
    """Which kernels a batch spends its time in, by step."""
    side, batch = plan.sides[0], plan.batches[0]
    known = photo_like(batch, side, 1, min(side, 256), 1)
    known = {n: t.to(plan.device) for n, t in known.items()}
    for step in STEPS:
        network = inference_step(model, step, precision, plan.device)
        inputs = {t.name: known[t.name] for t in network.step.inputs}
        known.update(network(inputs))
        rows.measure(
            f"kernels of {name} {precision}, {side} x {side}, batch {batch}, {step}",
            functools.partial(_kernels, network, inputs),
        )


def _kernels(network: InferenceStep, inputs: Named) -> Row:
    """Milliseconds by kernel, the largest ten, and of all together."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for _ in range(2):
            network(inputs)
        with torch.profiler.profile() as profiler:
            network(inputs)
            if inputs[network.step.inputs[0].name].is_cuda:
                torch.cuda.synchronize()
    finally:
        torch.backends.cudnn.benchmark = before
    spent: dict[str, list[float]] = {}
    for event in profiler.events():
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        if on_device or not torch.cuda.is_available():
            found = spent.setdefault(event.name[:100], [0, 0.0])
            found[0] += 1
            found[1] += (event.self_device_time_total if on_device else event.cpu_time_total) / 1e3
    largest = sorted(spent.items(), key=lambda item: -item[1][1])
    return {
        "kernels": [{"name": n, "calls": c, "milliseconds": ms} for n, (c, ms) in largest[:10]],
        "all_milliseconds": sum(ms for _, ms in spent.values()),
        "launches": sum(c for c, _ in spent.values()),
    }


def _working_memory(plan: Plan, model: PikFix, precision: Precision) -> Row:
    """Peak memory of similarity and colorize where the working size is twice the usual."""
    _reset_memory(plan)
    side = 2 * plan.sides[0]
    known = photo_like(1, side, 1, min(side, 256), 2)
    known = {n: t.to(plan.device) for n, t in known.items()}
    known["working_l"] = known["photo_l"]
    for spec in SYSTEM.steps(model.config):
        if not spec.takes_photos:
            step = inference_step(model, spec.name, precision, plan.device)
            known.update(step({t.name: known[t.name] for t in spec.inputs}))
    peak = _peak(plan)
    return {
        "precision": precision,
        "working_side": side,
        "peak_bytes": peak,
        "limit_bytes": WORKING_BYTES,
    }


def _reset_memory(plan: Plan) -> None:
    if plan.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _allocated(plan: Plan) -> int | None:
    return torch.cuda.memory_allocated() if plan.on_gpu else None


def _peak(plan: Plan) -> int | None:
    """Bytes that PyTorch has held at most; a rehearsal has none to tell."""
    return torch.cuda.max_memory_allocated() if plan.on_gpu else None
