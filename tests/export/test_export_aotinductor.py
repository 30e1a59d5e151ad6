"""AOTInductor packages as far as no GPU is needed; the GPU campaign compiles and runs them."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pikfix_steps import ENSEMBLES, NETWORKS, SYSTEM, module_of, steps_of
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import detect_fake_mode

from pikfix.export import ExportError, export_checkpoint
from pikfix.export.configs import build_configs
from pikfix.export.onnx import trace
from pikfix.export.parity import Arrays, Limits, Runner, check_parity
from pikfix.export.runtimes.aotinductor import AOTInductor, compile_package, self_contained
from pikfix.export.runtimes.decompositions import DECOMPOSITIONS, WARP
from pikfix.export.runtimes.programs import ByName
from pikfix.export.targets import NGC, Placement
from pikfix.kernels import center_normalize, correlation_warp, sphist
from pikfix.systems.base import Step, TensorSpec
from pikfix.systems.pikfix.networks import PRESETS, PikFix, PikFixConfig
from pikfix.systems.pikfix.steps import REFERENCE_LAB, WORKING_L


def test_packages_are_for_the_container_and_for_a_gpu(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = {"runtime": "pytorch", "device": "cuda"}
    with pytest.raises(ExportError, match="no NVIDIA GPU is visible"):
        export_checkpoint(checkpoint, tmp_path / "repository", target="ngc", **words)
    with pytest.raises(ExportError, match="for the embedded server"):
        export_checkpoint(checkpoint, tmp_path / "repository", runtime="pytorch", target="ngc")
    assert list(tmp_path.iterdir()) == []


def test_their_config_names_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runtime = AOTInductor("fp16", native=True)
    chosen = dict.fromkeys(NETWORKS, runtime)
    configs = build_configs(SYSTEM, PRESETS["compact"], chosen, placement=Placement(NGC, "cuda"))
    for name in NETWORKS:
        assert configs[name].backend == "pytorch"
        assert configs[name].platform == "torch_aoti"
        assert configs[name].default_model_filename == "model.pt2"
        config = configs[name]
        model = next(m for m in steps_of(PRESETS["compact"]) if m.name == name)
        # The backend counts tensors, and merges no requests: the batch is a dimension.
        assert config.max_batch_size == 0
        for word, tensors, ours in (
            ("INPUT", config.input, model.inputs),
            ("OUTPUT", config.output, model.outputs),
        ):
            assert [t.name for t in tensors] == [f"{word}__{i}" for i in range(len(ours))]
            assert [list(t.dims) for t in tensors] == [[-1, *t.dims] for t in ours]
        (warmup,) = config.model_warmup
        assert set(warmup.inputs) == {t.name for t in config.input} and warmup.batch_size == 0
        for given, tensor in zip(config.input, model.inputs, strict=True):
            dims = list(warmup.inputs[given.name].dims)
            assert dims[0] == 1 and len(dims) == 1 + len(tensor.dims)
    for ensemble in ENSEMBLES:
        # It may take batches all the same: a step's whole shape is what has to agree.
        assert configs[ensemble].max_batch_size == 8
        steps = {s.model_name: s for s in configs[ensemble].ensemble_scheduling.step}
        assert dict(steps["similarity"].input_map) == {
            "INPUT__0": "working_l",
            "INPUT__1": "reference_lab",
        }
        assert steps["similarity"].output_map["OUTPUT__0"] == "warped_1"
        assert dict(steps["colorize"].output_map) == {"OUTPUT__0": "ab"}
    assert runtime.gate_device == "cuda"


class Operators(nn.Module):
    """Each of this project's operators, with free sizes and a free width of the values."""

    def forward(self, working_l: Tensor, reference_lab: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def features(luminance: Tensor) -> Tensor:
            return center_normalize(nn.functional.pixel_unshuffle(luminance, 8).flatten(2).mT)

        batch, references = reference_lab.shape[:2]
        query = features(working_l)
        key = features(reference_lab[:, :, :1].flatten(0, 1)).reshape(batch, -1, 64)
        centres = torch.linspace(-1, 1, 8)
        bins = sphist(reference_lab[:, :, 1:].flatten(0, 1), centres, 0.1, 8)
        bins = bins.flatten(2).mT.reshape(batch, -1, 16)
        warped, confidence = correlation_warp(query, key, bins, 0.05)
        owner = torch.eye(references)[:, None].expand(-1, key.shape[1] // references, -1)
        owner = owner.reshape(1, -1, references).expand(batch, -1, -1)
        return warped, confidence, correlation_warp(query, key, owner, 0.05)[0].mean(dim=1)


OPERATORS = Step(
    "operators",
    (WORKING_L, REFERENCE_LAB),
    tuple(TensorSpec(name, ("h", "w")) for name in ("warped", "confidence", "share")),
    side_multiple=32,
)

ALONE = """
import sys
sys.path = [entry for entry in sys.path if entry]
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pikfix", "triton"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuses())
import numpy as np
import torch
package = torch._inductor.aoti_load_package(sys.argv[1])
with np.load(sys.argv[2]) as given:
    inputs = [torch.from_numpy(given[name]) for name in given.files]
with torch.inference_mode():
    outputs = package(*inputs)
outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
assert not any(name.split(".")[0] == "pikfix" for name in sys.modules)
np.savez(sys.argv[3], *(output.numpy() for output in outputs))
"""


def alone(package: Path, model: Step, folder: Path) -> Runner:
    """Run a package in a process that has PyTorch and cannot import pikfix."""
    folder.mkdir()

    def run(inputs: Arrays) -> Arrays:
        np.savez(folder / "in.npz", *(inputs[tensor.name] for tensor in model.inputs))
        done = subprocess.run(
            [sys.executable, "-c", ALONE, package, folder / "in.npz", folder / "out.npz"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(folder / "out.npz") as answers:
            values = [answers[name] for name in answers.files]
        return {tensor.name: value for tensor, value in zip(model.outputs, values, strict=True)}

    return run


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Plain C++ without optimisation: what is compiled is under test, not its speed."""
    with torch._inductor.config.patch(
        {
            "aot_inductor.debug_compile": True,
            "cpp.simdlen": 1,
            "cpp_cache_precompile_headers": False,
        }
    ):
        yield


def test_a_package_holds_the_operators(tmp_path: Path) -> None:
    module = Operators().eval()
    with quick_compilation():
        compile_package(module, OPERATORS, tmp_path / "model.pt2", "cpu")
    run = alone(tmp_path / "model.pt2", OPERATORS, tmp_path / "alone")
    generator = torch.Generator().manual_seed(0)
    for batch, references, sides in ((1, 1, (32, 32)), (2, 3, (64, 96))):
        photo = torch.rand(batch, 1, 64, 32, generator=generator) * 2 - 1
        lab = torch.rand(batch, references, 3, *sides, generator=generator) * 2 - 1
        answer = run({"working_l": photo.numpy(), "reference_lab": lab.numpy()})
        for name, wanted in zip(answer, module(photo, lab), strict=True):
            np.testing.assert_allclose(answer[name], wanted, atol=1e-5)


@pytest.mark.packages
@pytest.mark.parametrize("name", NETWORKS)
def test_every_subnet_runs_from_its_package_alone(
    name: str, smallest_config: PikFixConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = PikFix(smallest_config).eval()
    models = steps_of(smallest_config)
    modules = {model.name: module_of(network, model.name) for model in models}
    runtime_limits = {model.name: Limits() for model in models}
    runners = {model.name: reference_runner(modules[model.name], model) for model in models}
    model = next(model for model in models if model.name == name)
    with quick_compilation():
        compile_package(modules[name], model, tmp_path / "model.pt2", "cpu")
    runners[name] = alone(tmp_path / "model.pt2", model, tmp_path / "alone")
    figures = check_parity(SYSTEM, modules, models, runners, limits=runtime_limits)
    assert figures[name]["max_abs"] <= 1e-3


def reference_runner(module: nn.Module, model: Step) -> Runner:
    """PyTorch itself, for the sub-nets that are not under test."""

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            out = module(*(torch.from_numpy(inputs[t.name]) for t in model.inputs))
        values = out if isinstance(out, tuple) else (out,)
        return {t.name: v.numpy() for t, v in zip(model.outputs, values, strict=True)}

    return run


def launches(graph_module: Any) -> list[Any]:
    """The kernel launches of a graph."""
    return [n for n in graph_module.graph.nodes if "triton_kernel_wrapper" in str(n.target)]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_inductor_is_given_the_kernels_themselves_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graph that Inductor lowers, traced here: launches with symbolic grids, no operator."""
    import triton
    from triton.backends.compiler import GPUTarget

    # What a kernel writes is found in its intermediate code, which is compiled for a target.
    hopper = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", hopper)
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    from pikfix.kernels.traceable import TRACEABLE

    program = self_contained(trace(ByName(Operators(), OPERATORS).eval(), OPERATORS), "cuda")
    ours = [n.target for n in program.graph.nodes if "pikfix" in str(n.target)]
    assert ours and set(ours) <= set(TRACEABLE.values())
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"]
    with detect_fake_mode(inputs):
        lowered, _ = aot_export_module(program.graph_module, inputs, trace_joint=False)
    assert not [n for n in lowered.graph.nodes if "pikfix" in str(n.target)]
    names = [
        kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__qualname__
        for node in launches(lowered)
    ]
    # Two prologues, one histogram, two warps, whose splits of the keys are merged.
    assert sorted(names) == ["forward_kernel"] * 5 + ["merge_kernel"] * 2
    widths = []
    for node in launches(lowered):
        grid = node.kwargs["grid"][0]
        assert any(isinstance(size, torch.fx.Node) for size in grid)  # free sizes stay free
        constants = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
        widths.append({**node.kwargs["kwargs"], **constants}.get("D"))
    # Values of a free width are warped in chunks of one known width.
    assert [width for width in widths if width is not None] == [16, 16, 16, 16]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fp32_output", [False, True])
def test_the_decomposed_warp_is_the_operator(masked: bool, fp32_output: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, n, 16, generator=generator) for n in (40, 30))
    query, key = (torch.nn.functional.normalize(t, dim=-1) for t in (query, key))
    values = torch.rand(2, 30, 8, generator=generator)
    mask = torch.rand(2, 30, generator=generator) < 0.5 if masked else None
    if mask is not None:
        mask[1] = False
    expected = WARP(query, key, values, 0.05, mask, fp32_output)
    actual = DECOMPOSITIONS[WARP](query, key, values, 0.05, mask, fp32_output)
    for one, other in zip(expected, actual, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    if masked:
        assert all(float(t[1].abs().max()) == 0 for t in actual)
