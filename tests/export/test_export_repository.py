from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from pikfix_steps import ENSEMBLES, NETWORKS, PYTHON_STEPS, SYSTEM, step_of, steps_of
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export import (
    ExportError,
    Manifest,
    ParityError,
    export_checkpoint,
    read_manifest,
    repository,
)
from pikfix.export.configs import ServingSettings, build_configs, fixed_configs, render
from pikfix.export.repository import parse_config
from pikfix.export.runtimes import onnxruntime as onnx_export
from pikfix.export.runtimes.onnxruntime import OnnxRuntime
from pikfix.systems.base import Step
from pikfix.systems.checkpoint import CheckpointError
from pikfix.systems.pikfix.networks import PRESETS, PikFixConfig, load_checkpoint

Exported = tuple[Path, Manifest]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_repository_has_what_triton_needs(exported: Exported) -> None:
    folder, _ = exported
    models = {path.name for path in folder.iterdir() if path.is_dir()}
    assert models == {*NETWORKS, *PYTHON_STEPS, *ENSEMBLES}
    for name in models:
        config = parse_config((folder / name / "config.pbtxt").read_text())
        assert config.name == name
        assert (folder / name / "1").is_dir()
    # Triton takes every folder of the repository for a model: nothing else may lie around.
    assert not list(folder.parent.glob(".pikfix-export-*"))


def test_manifest_tells_the_truth(exported: Exported, checkpoint: Path) -> None:
    folder, manifest = exported
    assert json.loads((folder / "manifest.json").read_text()) == manifest.to_dict()
    assert read_manifest(folder) == manifest
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert manifest.checkpoint["sha256"] == digest
    assert manifest.versions["torch"] == torch.__version__
    for name, entry in manifest.models.items():
        file = folder / name / str(entry["version"]) / entry["file"]
        assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        # No two libraries sum in the same order: networks that agree to the bit were not run.
        assert entry["parity"]["max_abs"] <= entry["parity"]["limits"]["max_abs"]
        assert entry["parity"]["max_abs"] > 0 or name == "tone"


def test_onnx_files_keep_the_contract(exported: Exported, checkpoint: Path) -> None:
    folder, _ = exported
    config = load_checkpoint(checkpoint).config
    for model in steps_of(config):
        graph = onnx.load(folder / model.name / "1" / "model.onnx").graph
        for tensors, values in ((model.inputs, graph.input), (model.outputs, graph.output)):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for tensor, value in zip(tensors, values, strict=True):
                dims = value.type.tensor_type.shape.dim
                fixed = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
                assert fixed == (-1, *tensor.dims), tensor.name


def test_onnx_networks_in_a_chain_are_the_pytorch_network(
    exported: Exported, checkpoint: Path
) -> None:
    folder, _ = exported
    model = load_checkpoint(checkpoint)
    rng = np.random.default_rng(5)
    known = {
        "photo_l": rng.uniform(-1, 1, (2, 1, 100, 84)).astype(np.float32),
        "reference_lab": rng.uniform(-0.8, 0.8, (2, 2, 3, 64, 96)).astype(np.float32),
    }
    for spec in steps_of(model.config):
        session = ort.InferenceSession(folder / spec.name / "1" / "model.onnx")
        names = [tensor.name for tensor in spec.outputs]
        inputs = {tensor.name: known[tensor.name] for tensor in spec.inputs}
        known.update(zip(names, session.run(names, inputs), strict=True))
    with torch.no_grad():
        expected = model(
            torch.from_numpy(known["photo_l"]), torch.from_numpy(known["reference_lab"])
        )
    np.testing.assert_allclose(known["restored_l"], expected.restored_l.numpy(), atol=1e-4)
    np.testing.assert_allclose(known["ab"], expected.ab.numpy(), atol=1e-4)


def test_joined_tiles_get_the_tone_of_the_whole_photo(exported: Exported, checkpoint: Path) -> None:
    folder, _ = exported
    photo = np.random.default_rng(0).uniform(-1, 1, (1, 1, 600, 90)).astype(np.float32)
    restore = ort.InferenceSession(folder / "restore" / "1" / "model.onnx")
    halo = step_of(load_checkpoint(checkpoint).config, "restore").halo
    assert halo is not None
    whole, *tiles = (
        restore.run(["repaired_l"], {"filled_l": part})[0]
        for part in (photo, photo[:, :, : 320 + halo], photo[:, :, 320 - halo :])
    )
    joined = np.concatenate((tiles[0][:, :, :320], tiles[1][:, :, halo:]), axis=2)
    np.testing.assert_allclose(joined, whole, atol=1e-5)
    tone = ort.InferenceSession(folder / "tone" / "1" / "model.onnx")
    restored, _ = tone.run(["restored_l", "working_l"], {"filled_l": photo, "repaired_l": joined})
    assert np.abs(restored - joined).max() > 1e-2
    with torch.no_grad():
        expected = load_checkpoint(checkpoint).restoration(torch.from_numpy(photo))
    np.testing.assert_allclose(restored, expected.numpy(), atol=1e-4)


def test_a_second_export_is_the_next_version_and_only_two_are_kept(
    checkpoint: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    stand_in = copies_instead_of_exports(exported[0])
    monkeypatch.setattr(onnx_export, "export_onnx", stand_in)
    for version in (1, 2, 3):
        manifest = export_checkpoint(checkpoint, folder)
        assert {entry["version"] for entry in manifest.models.values()} == {version}
    for name in NETWORKS:
        kept = sorted(path.name for path in (folder / name).iterdir() if path.is_dir())
        assert kept == ["2", "3"]


def copies_instead_of_exports(source: Path):  # type: ignore[no-untyped-def]
    """Publishing is under test, not tracing: hand out files that were exported before."""

    def export(module: object, model: Step, path: Path, *, runtime: str) -> None:
        path.write_bytes((source / model.name / "1" / path.name).read_bytes())

    return export


def test_a_failed_gate_changes_nothing(
    exported: Exported, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = exported
    before = snapshot(folder)
    copy = copies_instead_of_exports(folder)

    def damaged(module: object, model: Step, path: Path, *, runtime: str) -> None:
        copy(module, model, path, runtime=runtime)
        if model.name != "colorize":
            return
        graph = onnx.load(path)
        (weights,) = (t for t in graph.graph.initializer if t.name.endswith("n.output.weight"))
        values = onnx.numpy_helper.to_array(weights) * np.float32(1.2)
        weights.raw_data = values.astype(np.float32).tobytes()
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_export, "export_onnx", damaged)
    with pytest.raises(ParityError, match="colorize: ab of"):
        export_checkpoint(checkpoint, folder)
    assert snapshot(folder) == before
    assert not list(folder.parent.glob(".pikfix-export-*"))


def test_a_full_disk_in_the_middle_of_publishing_is_taken_back(
    exported: Exported, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = exported
    before = snapshot(folder)
    monkeypatch.setattr(onnx_export, "export_onnx", copies_instead_of_exports(folder))
    write = repository._write

    def full(path: Path, text: str) -> None:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(repository, "_write", full)
    with pytest.raises(ExportError, match=r"manifest\.json \(No space left on device\)"):
        export_checkpoint(checkpoint, folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "choice",
    [
        {"runtime": "tensorrt", "device": "cpu", "precision": "fp16"},
        {"runtime": "onnxruntime", "precision": "bf16"},
    ],
)
def test_unsupported_choices_are_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, choice: dict[str, str]
) -> None:
    with pytest.raises(ExportError, match="this version has"):
        export_checkpoint(checkpoint, tmp_path / "repository", **choice)
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_checkpoint_leaves_no_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        export_checkpoint(tmp_path / "none.safetensors", tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match="choose another folder"):
        export_checkpoint(checkpoint, tmp_path / "file" / "repository")


def test_a_missing_or_damaged_manifest_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="pikfix export"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ExportError, match="export again"):
        read_manifest(tmp_path)


def onnx_configs(config: PikFixConfig) -> dict[str, pb.ModelConfig]:
    settings = ServingSettings()
    runtime = OnnxRuntime(settings)
    return build_configs(SYSTEM, config, dict.fromkeys(NETWORKS, runtime), settings)


COMMITTED = Path(__file__).parents[2] / "model_repository"


@pytest.mark.parametrize("name", [*PYTHON_STEPS, *ENSEMBLES])
def test_committed_configs_are_the_contracts(name: str) -> None:
    built = fixed_configs(SYSTEM)[name]
    assert (COMMITTED / name / "config.pbtxt").read_text() == render(built)


@pytest.mark.parametrize("preset", PRESETS)
def test_ensembles_join_what_the_steps_declare(preset: str) -> None:
    """Every tensor of an ensemble is produced by exactly one step, with one type and rank."""
    configs = onnx_configs(PRESETS[preset])
    for name in ENSEMBLES:
        ensemble = configs[name]
        known = {tensor.name: tensor for tensor in ensemble.input}
        taken = {tensor.name for tensor in ensemble.output}
        for step in ensemble.ensemble_scheduling.step:
            model = configs[step.model_name]
            assert set(step.input_map) <= {tensor.name for tensor in model.input}
            assert set(step.input_map) >= {t.name for t in model.input if not t.optional}
            for tensor in model.input:
                if tensor.name not in step.input_map:
                    continue  # another system's
                source = known[step.input_map[tensor.name]]
                assert source.data_type == tensor.data_type
                assert compatible(source.dims, tensor.dims), (step.model_name, tensor.name)
                taken.add(tensor.name)
            for tensor in model.output:
                if tensor.name in step.output_map:
                    assert step.output_map[tensor.name] not in known
                    known[step.output_map[tensor.name]] = tensor
        for tensor in ensemble.output:
            assert compatible(known[tensor.name].dims, tensor.dims)
        # Triton refuses an ensemble with a tensor that nothing takes.
        assert set(known) == taken


def compatible(a: list[int], b: list[int]) -> bool:
    return len(a) == len(b) and all(x == y or -1 in (x, y) for x, y in zip(a, b, strict=True))


def test_no_batcher_has_a_policy_and_the_first_step_bounds_the_photos() -> None:
    """With a policy a batcher sleeps while its instances are free."""
    configs = onnx_configs(PikFixConfig())
    for config in configs.values():
        batching = config.dynamic_batching
        assert not batching.HasField("default_queue_policy")
        assert not batching.priority_levels
    bound = configs["decode_photo"].parameters["max_in_flight"].string_value
    assert int(bound) == ServingSettings().max_in_flight


def test_warm_up_fits_the_inputs() -> None:
    for name in NETWORKS:
        config = onnx_configs(PRESETS["compact"])[name]
        (warmup,) = config.model_warmup
        for tensor in config.input:
            dims = warmup.inputs[tensor.name].dims
            assert compatible(list(dims), list(tensor.dims))
            assert min(dims) > 0


def test_configs_survive_their_text() -> None:
    for config in onnx_configs(PRESETS["paper"]).values():
        assert isinstance(config, pb.ModelConfig)
        assert parse_config(render(config)) == config
