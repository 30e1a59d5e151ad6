"""What is asked of TensorRT, recorded by a stand-in: no engine runs here."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pikfix_steps import NETWORKS, SYSTEM, steps_of
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export import ExportError, Manifest, ParityError, export_checkpoint
from pikfix.export.configs import ServingSettings, build_configs
from pikfix.export.parity import Arrays
from pikfix.export.profiles import Capacity, profile_of
from pikfix.export.runtimes import kernel_step
from pikfix.export.runtimes import tensorrt as runtime_module
from pikfix.export.runtimes.engines import EngineOptions
from pikfix.export.runtimes.kernel_step import checkpoint_runner
from pikfix.export.runtimes.onnxruntime import onnx_runner
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE
from pikfix.serving.engines import needs
from pikfix.systems.base import Step
from pikfix.systems.pikfix.networks import PRESETS, load_checkpoint

API = "pikfix.export.runtimes.tensorrt_api"
CLI = "from pikfix.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"


def test_without_tensorrt_one_line_says_what_to_install_and_where(
    checkpoint: Path, tmp_path: Path
) -> None:
    words = ["export", str(checkpoint), "--runtime", "tensorrt", "--device", "cuda"]
    done = subprocess.run(
        [sys.executable, "-c", CLI, *words, "-o", str(tmp_path / "repository")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install 'pikfix[tensorrt]'" in done.stderr
    assert "nvcr.io/nvidia/pytorch" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_stubs_alone_are_no_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ExportError, match="not installed here"):
        runtime_module.TensorRTRuntime(ServingSettings(), "fp16")
    sys.modules.pop("tensorrt", None)


class Recorder:
    """Stands where TensorRT would: keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.module = types.ModuleType("tensorrt")
        self.module.__file__ = "tensorrt/__init__.py"
        self.parses, self.builds = True, True
        self.fill()

    def fill(self) -> None:
        record = self.calls.append
        recorder = self

        class Named:
            def __init__(self, kind: str) -> None:
                self.kind = kind

            def __getattr__(self, name: str) -> str:
                return f"{self.kind}.{name}"

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, Any] = {}

            def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
                self.shapes[name] = (low, opt, high)

        class Cache:
            def __init__(self, stored: bytes) -> None:
                self.stored = stored

            def serialize(self) -> bytes:
                return self.stored + b"+"

        class Config:
            def __init__(self) -> None:
                self.settings: dict[str, Any] = {}
                self.__dict__["cache"] = None

            def __setattr__(self, name: str, value: Any) -> None:
                if name not in ("settings", "cache"):
                    record(("set", name, value))
                self.__dict__[name] = value

            def set_flag(self, flag: str) -> None:
                record(("set_flag", flag))

            def clear_flag(self, flag: str) -> None:
                record(("clear_flag", flag))

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                record(("pool", pool, size))

            def add_optimization_profile(self, profile: Profile) -> int:
                record(("profile", profile.shapes))
                return sum(call[0] == "profile" for call in recorder.calls) - 1

            def create_timing_cache(self, stored: bytes) -> Cache:
                return Cache(stored)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                record(("cache", cache.stored, ignore_mismatch))
                self.cache = cache
                return cache.stored != b"of another GPU"

            def get_timing_cache(self) -> Cache:
                assert self.cache is not None
                return self.cache

        class Builder:
            def __init__(self, logger: Any) -> None: ...

            def create_network(self, flags: int) -> dict[str, Any]:
                record(("network", flags))
                return {}

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: dict[str, Any], config: Config) -> Any:
                record(("build", network["file"]))
                monitor = config.progress_monitor
                monitor.phase_start("Building", None, 2)
                monitor.phase_start("Timing", "Building", 9)
                monitor.step_complete("Timing", 0)
                monitor.step_complete("Building", 0)
                monitor.phase_finish("Building")
                digest = hashlib.sha256(Path(network["file"]).read_bytes()).hexdigest()
                return f"engine of {digest}".encode() if recorder.builds else None

        class OnnxParser:
            def __init__(self, network: dict[str, Any], logger: Any) -> None:
                self.network = network

            def parse_from_file(self, file: str) -> bool:
                record(("parse", file))
                self.network["file"] = file
                return recorder.parses

            num_errors = 1

            def get_error(self, index: int) -> Any:
                return types.SimpleNamespace(desc=lambda: "no importer for Attention")

        def logger(level: int) -> object:
            return object()

        logger.WARNING = 2  # type: ignore[attr-defined]
        for name, value in {
            "__version__": "11.0.0",
            "Logger": logger,
            "Builder": Builder,
            "OnnxParser": OnnxParser,
            "Dims": tuple,  # of a list
            "IBuilderConfig": Config,
            "IProgressMonitor": type("IProgressMonitor", (), {}),
            "BuilderFlag": Named("BuilderFlag"),
            "MemoryPoolType": Named("MemoryPoolType"),
            "HardwareCompatibilityLevel": Named("HardwareCompatibilityLevel"),
            "NetworkDefinitionCreationFlag": types.SimpleNamespace(STRONGLY_TYPED=1),
        }.items():
            setattr(self.module, name, value)

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    found = Recorder()
    monkeypatch.setitem(sys.modules, "tensorrt", found.module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a stand-in")
    sys.modules.pop(API, None)
    yield found
    sys.modules.pop(API, None)


def build(recorder: Recorder, folder: Path, name: str = "restore", **options: Any) -> list[str]:
    """Ask for an engine of some file; the lines of progress."""
    api = importlib.import_module(API)
    lines: list[str] = []
    (spec,) = (m for m in steps_of(PRESETS["compact"]) if m.name == name)
    file = folder / "model.onnx"
    file.write_bytes(b"a graph")
    profiles = [profile_of(spec, Capacity().of(spec), reference_side=DEFAULT_REFERENCE_SIDE)]
    built = api.build_from_onnx(
        file, profiles, EngineOptions(**options), name=name, report=lines.append
    )
    assert built == f"engine of {hashlib.sha256(b'a graph').hexdigest()}".encode()
    return lines


def test_networks_are_strongly_typed_and_flags_are_those_asked_for(
    recorder: Recorder, tmp_path: Path
) -> None:
    lines = build(recorder, tmp_path, hardware_compatible=True, optimization_level=4)
    assert recorder.of("network") == [(1 << 1,)]
    assert recorder.of("clear_flag") == [("BuilderFlag.TF32",)]
    assert recorder.of("set_flag") == [("BuilderFlag.VERSION_COMPATIBLE",)]
    settings = dict(recorder.of("set"))
    assert settings["hardware_compatibility_level"] == "HardwareCompatibilityLevel.AMPERE_PLUS"
    assert settings["builder_optimization_level"] == 4
    assert recorder.of("pool") == [("MemoryPoolType.WORKSPACE", 8 << 30)]
    kinds = [call[0] for call in recorder.calls]
    assert kinds.index("parse") < kinds.index("profile") < kinds.index("build")
    assert lines == ["restore: Building, 2 steps", "restore: Building 1/2"]
    recorder.calls.clear()
    build(recorder, tmp_path, version_compatible=False)
    assert recorder.of("set_flag") == []
    assert "hardware_compatibility_level" not in dict(recorder.of("set"))


def test_profiles_are_those_of_the_bucket_table(recorder: Recorder, tmp_path: Path) -> None:
    build(recorder, tmp_path)
    assert recorder.of("profile") == [
        ({"filled_l": ((1, 1, 32, 32), (1, 1, 512, 512), (1, 1, 4096, 4096))},),
    ]
    recorder.calls.clear()
    build(recorder, tmp_path, "similarity")
    ((shapes,),) = recorder.of("profile")
    assert shapes["working_l"] == ((1, 1, 32, 32), (1, 1, 512, 512), (8, 1, 512, 512))
    assert shapes["reference_lab"] == ((1, 1, 3, 32, 32), (1, 1, 3, 512, 512), (8, 8, 3, 512, 512))


def test_the_timing_cache_is_read_kept_and_never_in_the_way(
    recorder: Recorder, tmp_path: Path
) -> None:
    cache = tmp_path / "caches" / "timing"
    build(recorder, tmp_path, timing_cache=cache)
    assert cache.read_bytes() == b"+"
    build(recorder, tmp_path, timing_cache=cache)
    assert cache.read_bytes() == b"++"
    assert recorder.of("cache") == [(b"", False), (b"+", False)]
    recorder.calls.clear()
    cache.write_bytes(b"of another GPU")
    build(recorder, tmp_path, timing_cache=cache)
    assert recorder.of("cache") == [(b"of another GPU", False), (b"", False)]


def test_refusals_are_one_line_with_the_reason(recorder: Recorder, tmp_path: Path) -> None:
    recorder.parses = False
    with pytest.raises(ExportError, match=r"no importer for Attention.*10\.14"):
        build(recorder, tmp_path)
    recorder.parses, recorder.builds = True, False
    with pytest.raises(ExportError, match="built no engine"):
        build(recorder, tmp_path)


@pytest.fixture
def exported_onnx(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, exported: Any) -> Path:
    """Hand out files that were exported before: tracing is not under test."""
    source: Path = exported[0]

    def copied(module: object, model: Step, path: Path, *, runtime: str) -> None:
        assert runtime == "tensorrt"
        path.write_bytes((source / model.name / "1" / "model.onnx").read_bytes())

    monkeypatch.setattr(runtime_module, "export_onnx", copied)
    # The python step of similarity is checked where it can run: the GPU here is a stand-in.
    monkeypatch.setattr(
        kernel_step,
        "checkpoint_runner",
        lambda path, model, precision, _device: checkpoint_runner(path, model, precision, "cpu"),
    )
    return source


def run_onnx_beside(worse_by: float):  # type: ignore[no-untyped-def]
    """A runner for the gate to judge: the ONNX file itself on the CPU, made worse."""

    class Runner:
        def __init__(self, plan: Path, outputs: list[str]) -> None:
            self.run = onnx_runner(plan.with_name("model.onnx"))

        def __call__(self, inputs: Arrays) -> Arrays:
            return {n: (v + np.float32(worse_by)) for n, v in self.run(inputs).items()}

    return Runner


def test_manifest_hashes_engine_and_onnx(
    exported_onnx: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module(API), "EngineRunner", run_onnx_beside(0))
    folder = tmp_path / "repository"
    manifest: Manifest = export_checkpoint(
        checkpoint, folder, runtime="tensorrt", device="cuda", target="ngc"
    )
    assert manifest.versions["tensorrt"] == "11.0.0"
    for name in ("damage", "restore", "tone", "colorize"):
        entry = manifest.models[name]
        assert entry["file"] == "model.plan"
        assert set(entry["files"]) == {"model.plan", "model.onnx"}
        for file, digest in entry["files"].items():
            content = (folder / name / "1" / file).read_bytes()
            assert digest == hashlib.sha256(content).hexdigest()
        onnx_hash = entry["files"]["model.onnx"]
        assert (folder / name / "1" / "model.plan").read_text() == f"engine of {onnx_hash}"
        onnx.checker.check_model(onnx.load(folder / name / "1" / "model.onnx"))
    # What a server's start is checked against: this version, or a newer one.
    assert [(n.model, n.version, n.newer) for n in needs(str(folder))] == [
        ("colorize", "11.0.0", True),
        ("damage", "11.0.0", True),
        ("restore", "11.0.0", True),
        ("tone", "11.0.0", True),
    ]
    # Nothing was measured that speaks for the softmax of TensorRT: the python step is the default.
    assert manifest.models["similarity"]["file"] == "checkpoint.safetensors"


def test_an_engine_that_fails_the_gate_is_not_published(
    exported_onnx: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module(API), "EngineRunner", run_onnx_beside(0.01))
    with pytest.raises(ParityError, match="damage: filled_l"):
        export_checkpoint(checkpoint, tmp_path / "repository", runtime="tensorrt", device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_engines_through_torch_tensorrt_are_mapped_by_the_ensemble(
    recorder: Recorder, checkpoint: Path
) -> None:
    config = load_checkpoint(checkpoint).config
    runtime = runtime_module.TensorRTRuntime(
        ServingSettings(), "fp16", options=EngineOptions(builder="torch")
    )
    configs = build_configs(SYSTEM, config, dict.fromkeys(NETWORKS, runtime))
    for name in NETWORKS:
        spec = next(m for m in steps_of(config) if m.name == name)
        outputs = [o.name for o in configs[name].output]
        assert outputs == [f"output{i}" for i in range(len(spec.outputs))]
        step = _step(configs["pikfix_photo"], name)
        for output, tensor in zip(outputs, spec.outputs, strict=True):
            assert step.output_map[output] == tensor.name
    assert configs["colorize"].backend == "tensorrt"


def _step(ensemble: pb.ModelConfig, name: str) -> pb.ModelEnsembling.Step:
    return next(s for s in ensemble.ensemble_scheduling.step if s.model_name == name)


def test_the_plugin_needs_tensorrt(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="add --runtime tensorrt"):
        export_checkpoint(checkpoint, tmp_path / "repository", similarity="plugin")


def test_a_sub_net_without_the_plugin_is_left_to_the_chosen_builder(recorder: Recorder) -> None:
    runtime = runtime_module.TensorRTRuntime(ServingSettings(), "fp32", warp_plugin=True)
    specs = steps_of(PRESETS["compact"])
    through = {m.name: runtime._through_torch(m) for m in specs}
    assert through == {name: name == "similarity" for name in NETWORKS}
    # The kernel inside was compiled for the GPU and the version that built the engine.
    configs = build_configs(SYSTEM, PRESETS["compact"], dict.fromkeys(NETWORKS, runtime))
    needed = {name: configs[name].parameters["tensorrt"].string_value for name in through}
    assert needed == {n: f"{'==' if n == 'similarity' else '>='}11.0.0" for n in NETWORKS}
