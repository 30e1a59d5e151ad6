"""PyTorch on a CPU as an export runtime, and the choice by measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pikfix_steps import NETWORKS, SYSTEM, inference_step, module_of, step_of, steps_of

from pikfix.evaluation.parity import compare
from pikfix.export import (
    ExportError,
    Manifest,
    ParityError,
    export_checkpoint,
    exporter,
    measured,
    runtimes,
)
from pikfix.export.configs import ServingSettings
from pikfix.export.measured import export_fastest
from pikfix.export.parity import CASES, Limits
from pikfix.export.repository import parse_config
from pikfix.export.runtimes import Choice, candidates, pytorch
from pikfix.export.runtimes.pytorch import REDUCED_LIMITS, PyTorch
from pikfix.inference import InferenceStep, load_step
from pikfix.inference.quantized import Int8Conv2d, vnni_supported
from pikfix.systems.base import Case
from pikfix.systems.chain import run_step
from pikfix.systems.checkpoint import load, save_checkpoint
from pikfix.systems.pikfix.networks import PikFix, PikFixConfig, load_checkpoint

needs_vnni = pytest.mark.skipif(not vnni_supported(), reason="this CPU does not multiply bytes")

SMALL = (Case(2, 2, (96, 64), (32, 64)), Case(1, 1, (32, 32), (32, 32)))


@pytest.fixture(scope="module", autouse=True)
def small_cases() -> Iterator[None]:
    """The gate on small pictures: what is tested here is what it is held to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "CASES", SMALL)
        patch.setattr(pytorch, "CASES", SMALL)
        patch.setattr(measured, "CASES", SMALL)
        yield


@pytest.fixture(scope="module")
def manifest(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("pytorch") / "repository"
    return folder, export_checkpoint(checkpoint, folder, runtime="pytorch", precision="bf16")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_inference_form_computes_the_same_in_float32(
    checkpoint: Path, name: str, batch: int
) -> None:
    model = load_checkpoint(checkpoint)
    known = SYSTEM.sample_inputs(np.random.default_rng(0), Case(batch, 2, (96, 64), (64, 32)))
    for spec in steps_of(model.config):
        inputs = {tensor.name: known[tensor.name] for tensor in spec.inputs}
        known.update(run_step(module_of(model, spec.name), spec, inputs))
        if spec.name != name:
            continue
        outputs = inference_step(model, name, "fp32")(inputs)
        for tensor in spec.outputs:
            value = outputs[tensor.name]
            assert value.dtype == torch.float32 and value.is_contiguous()
            # A softmax at 0.01 multiplies the last bits of a correlation by a hundred.
            atol = 5e-4 if name == "similarity" else 2e-5
            np.testing.assert_allclose(value, known[tensor.name], atol=atol, err_msg=tensor.name)


@pytest.mark.parametrize(
    "ablation",
    [{"similarity": "none"}, {"similarity": "single"}, {"fusion": "input_ab"}],
    ids=lambda choice: next(iter(choice.values())),
)
def test_ablations_have_inference_forms(
    tiny_config: PikFixConfig, ablation: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    model = PikFix(replace(tiny_config, **ablation)).eval()
    torch.nn.init.normal_(model.colorization.output.weight, std=0.05)
    known = SYSTEM.sample_inputs(np.random.default_rng(1), Case(1, 1, (64, 64), (32, 64)))
    for spec in steps_of(model.config):
        inputs = {tensor.name: known[tensor.name] for tensor in spec.inputs}
        known.update(run_step(module_of(model, spec.name), spec, inputs))
        outputs = inference_step(model, spec.name, "fp32")(inputs)
        for tensor in spec.outputs:
            assert compare(known[tensor.name].numpy(), outputs[tensor.name].numpy()).psnr > 80


def test_bfloat16_passes_its_gate_and_is_recorded(manifest: tuple[Path, Manifest]) -> None:
    folder, record = manifest
    assert (record.runtime, record.precision) == ("pytorch", "bf16")
    # Features of random weights hardly tell places apart: their matching stays in float32.
    expected = {
        "restore": torch.bfloat16,
        "tone": torch.float32,
        "similarity": torch.float32,
        "colorize": torch.bfloat16,
    }
    for name, dtype in expected.items():
        parity = record.models[name]["parity"]
        assert parity["limits"]["min_psnr"] == 45
        # Below: damaged; above: not bfloat16.
        assert 45 <= parity["psnr"] < (100 if dtype == torch.bfloat16 else 200)
        assert load_step(folder / name / "1" / "model.safetensors").dtype == dtype
        assert 'backend: "pytorch"' in (folder / name / "config.pbtxt").read_text()


def test_instances_are_for_the_embedded_servers_cpu(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for wanted, count in ((None, 2), (3, 3)):
        export_checkpoint(checkpoint, folder, runtime="pytorch", instances=wanted)
        for name in NETWORKS:
            config = parse_config((folder / name / "config.pbtxt").read_text())
            assert [group.count for group in config.instance_group] == [count]
    with pytest.raises(ExportError, match="several instances are for the embedded server"):
        export_checkpoint(checkpoint, folder, instances=2, target="ngc")


def test_float32_is_held_to_what_clients_are_promised(checkpoint: Path, tmp_path: Path) -> None:
    record = export_checkpoint(checkpoint, tmp_path / "repository", runtime="pytorch")
    for name in NETWORKS:
        assert record.models[name]["parity"]["max_abs"] < 1e-4


@needs_vnni
def test_int8_passes_its_gate_with_ranges_of_its_own(
    tiny_config: PikFixConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = PikFix(tiny_config)
    # As after training, the networks change their input by far less than its range.
    for layer in (model.restoration.output, model.colorization.output):
        torch.nn.init.normal_(layer.weight, std=0.01)
    save_checkpoint(model, tmp_path / "mild.safetensors")
    lines: list[str] = []
    folder = tmp_path / "repository"
    record = export_checkpoint(
        tmp_path / "mild.safetensors",
        folder,
        runtime="pytorch",
        precision="int8",
        progress=lines.append,
    )
    assert sum("activation ranges from drawn samples" in line for line in lines) == 1
    for name in ("restore", "colorize"):
        step = load_step(folder / name / "1" / "model.safetensors")
        assert step.precision == "int8"
        assert any(isinstance(module, Int8Conv2d) for module in step.modules())
        assert 45 <= record.models[name]["parity"]["psnr"] < 70
    assert load_step(folder / "similarity" / "1" / "model.safetensors").precision != "int8"


def test_int8_is_refused_where_it_cannot_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "vnni_supported", lambda: False)
    with pytest.raises(ExportError, match=r"int8 needs a CPU with .* use --precision bf16"):
        export_checkpoint(checkpoint, tmp_path / "r", runtime="pytorch", precision="int8")
    monkeypatch.setattr(runtimes.cpu, "good_precisions", lambda: ("fp32", "bf16", "int8"))
    monkeypatch.setattr(runtimes, "vnni_supported", lambda: False)
    offered = candidates(ServingSettings(), dict)
    assert {choice.precision for choice in offered} == {"fp32", "bf16"}


def test_what_the_cpu_emulates_is_no_candidate_and_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    offered = candidates(ServingSettings(), dict)
    assert {(choice.runtime, choice.precision) for choice in offered} == {
        ("onnxruntime", "fp32"),
        ("pytorch", "fp32"),
    }
    lines: list[str] = []
    PyTorch(ServingSettings(), "fp32", report=lines.append)
    assert lines == []
    PyTorch(ServingSettings(), "bf16", report=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("warning: bf16 computes in bfloat16, which this CPU emulates")


def test_damage_that_bfloat16_does_not_explain_is_found(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path, device: str = "cpu") -> InferenceStep:
        step = load_step(path, device)
        if step.name == "restore":
            with torch.no_grad():
                step.network.restoration.output.weight.mul_(1.3)  # type: ignore[union-attr, operator]
        return step

    monkeypatch.setattr("pikfix.export.runtimes.pytorch.load_step", damaged)
    told = "restore: repaired_l.*nothing was published: take --precision fp32"
    with pytest.raises(ParityError, match=told):
        export_checkpoint(checkpoint, tmp_path / "repository", runtime="pytorch", precision="bf16")
    assert not (tmp_path / "repository").exists()


def test_a_file_that_is_no_step_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="did not write it"):
        load_step(checkpoint)
    with pytest.raises(ValueError, match="export again"):
        load_step(tmp_path / "none.safetensors")


def test_matching_that_bears_bfloat16_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped checkpoint's does, at the gate's own sizes: with a handful of keys it might not.

    Two references of 32 x 64 have four keys at 1/32; where those are almost alike, little but
    rounding is left of them once their mean is taken away.
    """
    monkeypatch.setattr(pytorch, "CASES", CASES)
    shipped = Path(__file__).parents[2] / "checkpoints" / "compact.safetensors"
    model = load_checkpoint(shipped)
    spec = step_of(model.config, "similarity")
    lines: list[str] = []
    runtime = PyTorch(ServingSettings(), "bf16", report=lines.append)
    runtime.export(module_of(model, spec.name), spec, tmp_path)
    assert load_step(tmp_path / "model.safetensors").dtype == torch.bfloat16
    # Nothing about float32; a CPU that emulates bfloat16 has a warning of that alone.
    assert [line for line in lines if not line.startswith("warning: ")] == []


@dataclass
class Paced:
    """A runtime whose networks take a given time, or are wrong."""

    real: PyTorch
    label: str
    wrong: bool = False

    def __post_init__(self) -> None:
        self.limits: Limits = REDUCED_LIMITS
        self.gate_device = "cpu"

    def export(self, module: Any, model: Any, folder: Path) -> Any:
        file, runner = self.real.export(module, model, folder)
        (folder / "label").write_text(self.label)

        def run(inputs: Any) -> Any:
            return {n: v + self.wrong for n, v in runner(inputs).items()}

        run.label = self.label  # type: ignore[attr-defined]
        return file, run


def test_the_fastest_within_its_limits_is_chosen(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By measured time alone, whatever the order; the fastest is wrong and is left out."""
    milliseconds = {"wrong": 1.0, "slow": 30.0, "quick": 20.0}
    monkeypatch.setattr(measured, "_milliseconds", lambda runner, _: milliseconds[runner.label])
    real = PyTorch(ServingSettings(), "bf16")
    paced: Any = {
        Choice("slow"): Paced(real, "slow"),
        Choice("wrong"): Paced(real, "wrong", wrong=True),
        Choice("quick"): Paced(real, "quick"),
    }
    loaded = load(checkpoint)
    lines: list[str] = []
    selection = export_fastest(paced, loaded, tmp_path, lines.append)
    record = selection.to_dict()
    for name in NETWORKS:
        assert (tmp_path / name / "label").read_text() == "quick"
        assert record["chosen"][name].startswith("runtime quick")
        figures = record["milliseconds"][name]
        assert figures[str(Choice("quick"))] == 20 and figures[str(Choice("slow"))] == 30
        assert "PSNR" in figures[str(Choice("wrong"))]
    assert "restore: runtime slow, device cpu, precision fp32: 30.0 ms" in lines
    (tmp_path / "staged").mkdir()
    with pytest.raises(ExportError, match="no runtime is within its limits"):
        export_fastest(
            {Choice("wrong"): Paced(real, "wrong", wrong=True)},  # type: ignore[dict-item]
            loaded,
            tmp_path / "staged",
        )


def test_auto_says_what_it_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {Choice("pytorch", "cpu", p): PyTorch(ServingSettings(), p) for p in ("fp32", "bf16")}
    monkeypatch.setattr(exporter, "candidates", lambda *_: two)
    record = export_checkpoint(checkpoint, tmp_path / "repository", runtime="auto")
    assert record.measured is not None
    for name in NETWORKS:
        times = record.measured["milliseconds"][name]
        assert set(times) == {str(choice) for choice in two}
        assert record.measured["chosen"][name] == min(times, key=times.__getitem__)
    assert sorted(p.name for p in (tmp_path / "repository" / "restore").iterdir()) == [
        "1",
        "config.pbtxt",
    ]
    with pytest.raises(ExportError, match="leave out --device"):
        export_checkpoint(checkpoint, tmp_path / "other", runtime="auto", device="cuda")
