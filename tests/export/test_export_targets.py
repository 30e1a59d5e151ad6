"""Configs of every target, runtime and device, as structures of Triton's own schema."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export import Manifest, contract, read_manifest
from pikfix.export.configs import ServingSettings, build_configs, render, set_parameter
from pikfix.export.contract import Model
from pikfix.export.profiles import common_shapes, profiles_of
from pikfix.export.repository import parse_config
from pikfix.export.runtimes.onnxruntime import OnnxRuntime
from pikfix.export.targets import (
    EMBEDDED,
    EMBEDDED_PARAMETERS,
    GPU_SLOT,
    NATIVE_MAX_SIDE,
    NGC,
    TARGETS,
    Placement,
)
from pikfix.networks import PRESETS, working_size
from pikfix.photos import bucket_shape

CONFIG = PRESETS["compact"]
SUBNETS = {model.name: model for model in contract.subnets(CONFIG)}


class Backend:
    """What a runtime writes at least: the names of its backend and file."""

    def __init__(self, backend: str, file: str) -> None:
        self.backend, self.file = backend, file

    def configure(self, model: Model, config: pb.ModelConfig) -> None:
        config.backend = self.backend
        config.default_model_filename = self.file
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
        set_parameter(config, "tile_pixels", 1)


RUNTIMES = {
    "onnxruntime": OnnxRuntime(ServingSettings()),
    "tensorrt": Backend("tensorrt", "model.plan"),
    "pytorch": Backend("pytorch", "model.pt2"),
    "python": Backend("python", "checkpoint.safetensors"),
}


def configs(target: str, runtime: str, device: str, accelerator: str = "cuda"):  # type: ignore[no-untyped-def]
    placement = Placement(TARGETS[target], device, accelerator)  # type: ignore[arg-type,index]
    chosen = dict.fromkeys(contract.SUBNETS, RUNTIMES[runtime])
    return build_configs(CONFIG, chosen, placement=placement)


@pytest.mark.parametrize(
    ("target", "runtime", "device", "accelerator"),
    list(itertools.product(TARGETS, RUNTIMES, ("cpu", "cuda"), ("cuda", "tensorrt"))),
)
def test_every_config_loads_in_tritons_schema(
    target: str, runtime: str, device: str, accelerator: str
) -> None:
    for name, config in configs(target, runtime, device, accelerator).items():
        parsed = parse_config(render(config))
        assert parsed == config
        assert parsed.name == name
        assert parsed.backend or parsed.platform == "ensemble"
        for group in parsed.instance_group:
            assert group.count >= 1
            if group.kind == pb.ModelInstanceGroup.KIND_CPU:
                assert not group.gpus


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_container_gets_instances_on_every_gpu_that_share_it(runtime: str) -> None:
    written = configs("ngc", runtime, "cuda")
    order = []
    for name in contract.SUBNETS:
        (group,) = written[name].instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_GPU
        assert not group.gpus  # each that the server sees
        (resource,) = group.rate_limiter.resources
        assert (resource.name, resource.count) == (GPU_SLOT, 1)
        order.append((group.rate_limiter.priority, name))
    assert [name for _, name in sorted(order)] == ["colorize", "similarity", "restore"]
    for name in contract.PYTHON_STEPS:
        (group,) = written[name].instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_CPU


def test_a_container_without_a_gpu_gets_cpu_instances_and_no_gpu_settings() -> None:
    for name in contract.SUBNETS:
        config = configs("ngc", "onnxruntime", "cpu")[name]
        assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]
        assert not config.HasField("optimization")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_native_backends_are_not_told_what_only_ours_does(runtime: str, device: str) -> None:
    for name, config in configs("ngc", runtime, device).items():
        if config.backend != "python" or name in contract.SUBNETS:
            assert not set(config.parameters) & set(EMBEDDED_PARAMETERS)
    embedded = configs("embedded", "onnxruntime", device)["restore"]
    assert set(embedded.parameters) >= {"tile_pixels", "tile_halo", "tile_align"}


def test_settings_of_newer_servers_stay_away_from_older_ones() -> None:
    assert EMBEDDED.server < (2, 63) <= NGC.server
    for name in contract.ENSEMBLES:
        old = configs("embedded", "onnxruntime", "cuda")[name].ensemble_scheduling
        new = configs("ngc", "onnxruntime", "cuda")[name].ensemble_scheduling
        assert old.max_inflight_requests == 0
        assert new.max_inflight_requests == ServingSettings().queue_size


def test_only_a_pure_and_versioned_step_is_cached() -> None:
    for target, device in itertools.product(TARGETS, ("cpu", "cuda")):
        cached = {
            n for n, c in configs(target, "onnxruntime", device).items() if c.response_cache.enable
        }
        assert cached == ({"restore"} if target == "ngc" else set())


def test_the_container_refuses_photos_that_no_engine_holds() -> None:
    parameters = configs("ngc", "tensorrt", "cuda")["decode_photo"].parameters
    assert int(parameters["max_side"].string_value) == NATIVE_MAX_SIDE
    for model in SUBNETS.values():
        for profile in profiles_of(model, max_batch=8, reference_side=256)[-1:]:
            height, width = working_size(*bucket_shape(NATIVE_MAX_SIDE, NATIVE_MAX_SIDE))
            if model.name == "restore":
                height = width = NATIVE_MAX_SIDE
            assert profile.ranges[model.inputs[0].name].largest[-2:] == (height, width)
    parameters = configs("embedded", "onnxruntime", "cuda")["decode_photo"].parameters
    assert "max_side" not in parameters
    assert int(parameters["max_pixels"].string_value) == ServingSettings().max_pixels


@pytest.mark.parametrize("name", contract.SUBNETS)
def test_cuda_graphs_are_captured_for_exact_shapes_inside_a_profile(name: str) -> None:
    config = configs("ngc", "tensorrt", "cuda")[name]
    profiles = profiles_of(SUBNETS[name], max_batch=8, reference_side=256)
    assert config.optimization.cuda.graphs
    assert len(config.optimization.cuda.graph_spec) == 2
    for spec in config.optimization.cuda.graph_spec:
        assert not spec.HasField("graph_lower_bound")  # a lower bound would admit other shapes
        assert set(spec.input) == {tensor.name for tensor in config.input}
        assert any(
            all(
                low <= size <= high
                for tensor, ranges in profile.ranges.items()
                for low, size, high in zip(
                    ranges.smallest[1:], spec.input[tensor].dim, ranges.largest[1:], strict=True
                )
            )
            for profile in profiles
        )
    assert list(config.instance_group[0].profile) == (["0", "1"] if name == "restore" else [])


def test_onnx_runs_on_tensorrt_where_one_profile_holds_every_shape() -> None:
    written = configs("ngc", "onnxruntime", "cuda", "tensorrt")
    for name in contract.SUBNETS:
        listed = written[name].optimization.execution_accelerators.gpu_execution_accelerator
        engines = ["tensorrt"] if name != "restore" else []
        assert [a.name for a in listed] == [*engines, "cuda"]
        if engines:
            largest = listed[0].parameters["trt_profile_max_shapes"].split(",")
            shapes = {t: tuple(map(int, s.split("x"))) for t, s in (v.split(":") for v in largest)}
            assert set(shapes) == {tensor.name for tensor in written[name].input}
            assert shapes["working_l"] == (8, 1, 512, 512)
    plain = configs("ngc", "onnxruntime", "cuda")
    assert all(
        [a.name for a in plain[n].optimization.execution_accelerators.gpu_execution_accelerator]
        == ["cuda"]
        for n in contract.SUBNETS
    )


SIDES = (1, 31, 200, 300, 777, 1024, 1025, 2000, 4096)


@pytest.mark.parametrize(("height", "width"), list(itertools.product(SIDES, SIDES)))
def test_every_photo_the_first_step_pads_fits_a_profile(height: int, width: int) -> None:
    shape = bucket_shape(height, width)
    working = working_size(*shape)
    for name, sides in (("restore", shape), ("colorize", working), ("similarity", working)):
        model = SUBNETS[name]
        tensor = model.inputs[0].name
        assert any(
            all(
                low <= side <= high
                for low, side, high in zip(
                    p.ranges[tensor].smallest[2:], sides, p.ranges[tensor].largest[2:], strict=True
                )
            )
            for p in profiles_of(model, max_batch=8, reference_side=256)
        )


def test_profiles_follow_another_bucket_table() -> None:
    profiles = profiles_of(SUBNETS["restore"], max_batch=4, reference_side=256, sides=(64, 96))
    (only,) = profiles
    assert only.ranges["photo_l"].largest == (4, 1, 96, 96)
    assert common_shapes(SUBNETS["restore"], reference_side=256, sides=(64, 96)) == ()
    maps = profiles_of(SUBNETS["colorize"], max_batch=4, reference_side=256)[0].ranges
    assert maps["warped_4"].largest == (4, CONFIG.warped_channels, 16, 16)
    assert maps["confidence_1"].smallest == (1, 1, 8, 8)


def test_a_manifest_says_what_ran_where_and_old_ones_still_load(
    exported: tuple[Path, Manifest], tmp_path: Path
) -> None:
    _, manifest = exported
    assert manifest.target == "embedded"
    assert set(manifest.tested_on) == set(contract.SUBNETS)
    assert all(device.startswith("CPU ") for device in manifest.tested_on.values())
    old = manifest.to_dict()
    del old["target"], old["tested_on"]
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    loaded = read_manifest(tmp_path)
    assert (loaded.target, loaded.tested_on) == ("embedded", {})
    assert loaded.models == manifest.models
