"""Configs of every target, runtime and device, as structures of Triton's own schema."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from pikfix_steps import ENSEMBLES, NETWORKS, PYTHON_STEPS, SYSTEM, steps_of
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export import Manifest, read_manifest
from pikfix.export.configs import ServingSettings, build_configs, render, set_parameter
from pikfix.export.profiles import Capacity, Largest, profile_of
from pikfix.export.repository import parse_config
from pikfix.export.runtimes.onnxruntime import OnnxRuntime
from pikfix.export.targets import (
    EMBEDDED,
    EMBEDDED_PARAMETERS,
    GPU_SLOT,
    NGC,
    TARGETS,
    Placement,
)
from pikfix.layers.sizes import working_size
from pikfix.photos import DEFAULT_BUCKET_SIDES, GPU_BUCKET_SIDES, bucket_shape
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE
from pikfix.systems.base import Model
from pikfix.systems.pikfix.networks import PRESETS

CONFIG = PRESETS["compact"]
SUBNETS = {model.name: model for model in steps_of(CONFIG)}


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
    chosen = dict.fromkeys(NETWORKS, RUNTIMES[runtime])
    return build_configs(SYSTEM, CONFIG, chosen, placement=placement)


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
    for name in NETWORKS:
        (group,) = written[name].instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_GPU
        assert not group.gpus  # each that the server sees
        (resource,) = group.rate_limiter.resources
        assert (resource.name, resource.count) == (GPU_SLOT, 1)
        order.append((group.rate_limiter.priority, name))
    # A photo that is nearly done holds the most memory: it goes first.
    assert [name for _, name in sorted(order)] == list(reversed(NETWORKS))
    for name in PYTHON_STEPS:
        (group,) = written[name].instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_CPU


def test_a_container_without_a_gpu_gets_cpu_instances_and_no_gpu_settings() -> None:
    for name in NETWORKS:
        config = configs("ngc", "onnxruntime", "cpu")[name]
        assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]
        assert not config.HasField("optimization")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_native_backends_are_not_told_what_only_ours_does(runtime: str, device: str) -> None:
    for name, config in configs("ngc", runtime, device).items():
        if config.backend != "python" or name in NETWORKS:
            assert not set(config.parameters) & set(EMBEDDED_PARAMETERS)
    embedded = configs("embedded", "onnxruntime", device)["restore"]
    assert set(embedded.parameters) >= {"tile_pixels", "tile_halo", "tile_align"}


def test_settings_of_newer_servers_stay_away_from_older_ones() -> None:
    assert EMBEDDED.server < (2, 63) <= NGC.server
    for name in ENSEMBLES:
        old = configs("embedded", "onnxruntime", "cuda")[name].ensemble_scheduling
        new = configs("ngc", "onnxruntime", "cuda")[name].ensemble_scheduling
        assert old.max_inflight_requests == 0
        assert new.max_inflight_requests == 4 * ServingSettings().max_in_flight  # on a GPU


def test_only_a_pure_and_versioned_step_is_cached() -> None:
    for target, device in itertools.product(TARGETS, ("cpu", "cuda")):
        cached = {
            n for n, c in configs(target, "onnxruntime", device).items() if c.response_cache.enable
        }
        # Triton's cache refuses buffers on a GPU, and says so for each photo.
        assert cached == ({"damage", "restore"} if (target, device) == ("ngc", "cpu") else set())


SMALL = Capacity(
    {"restore": Largest(1, 2048), "similarity": Largest(1, references=3), "colorize": Largest(4)}
)


def test_the_container_refuses_what_no_memory_holds() -> None:
    chosen = dict.fromkeys(NETWORKS, RUNTIMES["tensorrt"])
    placement = Placement(TARGETS["ngc"], "cuda", capacity=SMALL)
    written = build_configs(SYSTEM, CONFIG, chosen, placement=placement)
    parameters = written["decode_photo"].parameters
    assert parameters["max_side"].string_value == "2048"
    assert parameters["max_references"].string_value == "3"
    batches = {name: written[name].max_batch_size for name in written}
    assert (batches["restore"], batches["similarity"], batches["colorize"]) == (1, 1, 4)
    # A request with more photos than a step takes would fail in the middle.
    assert (batches["pikfix"], batches["pikfix_photo"]) == (1, 1)
    largest = placement.profile(SUBNETS["similarity"]).ranges
    assert largest["reference_lab"].largest == (1, 3, 3, 512, 512)
    embedded = configs("embedded", "onnxruntime", "cuda")["decode_photo"].parameters
    assert not {"max_side", "max_references"} & set(embedded)
    assert int(embedded["max_pixels"].string_value) == ServingSettings().max_pixels


@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_graphs_are_captured_for_the_buckets_of_usual_photos(name: str) -> None:
    config = configs("ngc", "tensorrt", "cuda")[name]
    largest = Capacity().of(SUBNETS[name])
    profile = profile_of(SUBNETS[name], largest, reference_side=DEFAULT_REFERENCE_SIDE)
    assert config.optimization.cuda.graphs
    captured = set()
    for spec in config.optimization.cuda.graph_spec:
        assert not spec.HasField("graph_lower_bound")  # a lower bound would admit other shapes
        assert set(spec.input) == {tensor.name for tensor in config.input}
        assert spec.batch_size <= config.max_batch_size
        for tensor, ranges in profile.ranges.items():
            dims = spec.input[tensor].dim
            for low, size, high in zip(ranges.smallest[1:], dims, ranges.largest[1:], strict=True):
                assert low <= size <= high
        captured.add((spec.batch_size, *spec.input[config.input[0].name].dim[-2:]))
    for size in ((400, 500), (500, 380), (250, 250), (768, 1024), (900, 700)):
        padded = bucket_shape(*size, GPU_BUCKET_SIDES)
        shape = padded if name == "restore" else working_size(*padded)
        for batch in {1, 4} & set(range(largest.batch + 1)):
            assert (batch, *shape) in captured
    assert len(captured) == len(config.optimization.cuda.graph_spec) <= 80
    assert not config.instance_group[0].profile


def test_onnx_runs_on_tensorrt_with_the_shapes_that_arrive() -> None:
    written = configs("ngc", "onnxruntime", "cuda", "tensorrt")
    for name in NETWORKS:
        listed = written[name].optimization.execution_accelerators.gpu_execution_accelerator
        assert [a.name for a in listed] == ["tensorrt", "cuda"]
        largest = listed[0].parameters["trt_profile_max_shapes"].split(",")
        shapes = {t: tuple(map(int, s.split("x"))) for t, s in (v.split(":") for v in largest)}
        assert set(shapes) == {tensor.name for tensor in written[name].input}
        first = written[name].input[0].name
        assert shapes[first][0] == written[name].max_batch_size
        # The provider creates one folder, not its parents.
        for key in ("trt_engine_cache_path", "trt_timing_cache_path"):
            assert Path(listed[0].parameters[key]).parent == Path("/tmp")
    plain = configs("ngc", "onnxruntime", "cuda")
    for name in NETWORKS:
        listed = plain[name].optimization.execution_accelerators.gpu_execution_accelerator
        assert [a.name for a in listed] == ["cuda"]
        # What is set under the accelerator, the backend resets to these.
        assert not listed[0].parameters
        for key in ("cudnn_conv_algo_search", "arena_extend_strategy"):
            assert plain[name].parameters[key].string_value == "1"


def test_a_gpu_gets_fewer_buckets_and_a_cpu_no_more_padding() -> None:
    for device, sides in (("cpu", DEFAULT_BUCKET_SIDES), ("cuda", GPU_BUCKET_SIDES)):
        parameters = configs("ngc", "onnxruntime", device)["decode_photo"].parameters
        assert parameters["bucket_sides"].string_value == ",".join(map(str, sides))
    assert len(GPU_BUCKET_SIDES) ** 2 < len(DEFAULT_BUCKET_SIDES) ** 2 / 3
    assert set(GPU_BUCKET_SIDES) <= set(DEFAULT_BUCKET_SIDES)


def test_beside_a_gpu_every_core_decodes_or_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for device, count in (("cpu", 2), ("cuda", 8)):
        for name in PYTHON_STEPS:
            assert configs("ngc", "tensorrt", device)[name].instance_group[0].count == count
    chosen = dict.fromkeys(NETWORKS, RUNTIMES["onnxruntime"])
    settings = ServingSettings(file_instances=5)
    written = build_configs(SYSTEM, CONFIG, chosen, settings, Placement(TARGETS["ngc"], "cuda"))
    assert written["decode_photo"].instance_group[0].count == 5


SIDES = (1, 31, 200, 300, 777, 1024, 1025, 2000, 4096)


@pytest.mark.parametrize(("height", "width"), list(itertools.product(SIDES, SIDES)))
def test_every_photo_the_first_step_pads_fits_a_profile(height: int, width: int) -> None:
    shape = bucket_shape(height, width, GPU_BUCKET_SIDES)
    working = working_size(*shape)
    for name, sides in (("restore", shape), ("colorize", working), ("similarity", working)):
        model = SUBNETS[name]
        profile = profile_of(
            model, Capacity().of(SUBNETS[name]), reference_side=DEFAULT_REFERENCE_SIDE
        )
        ranges = profile.ranges[model.inputs[0].name]
        assert all(
            low <= side <= high
            for low, side, high in zip(ranges.smallest[2:], sides, ranges.largest[2:], strict=True)
        )


def test_profiles_follow_the_largest_shapes() -> None:
    ranges = profile_of(
        SUBNETS["restore"], Largest(4, 96), reference_side=DEFAULT_REFERENCE_SIDE
    ).ranges
    assert ranges["filled_l"].largest == (4, 1, 96, 96)
    maps = profile_of(SUBNETS["colorize"], Largest(4), reference_side=DEFAULT_REFERENCE_SIDE).ranges
    assert maps["warped_4"].largest == (4, CONFIG.warped_channels, 16, 16)
    assert maps["confidence_1"].smallest == (1, 1, 8, 8)


def test_a_manifest_says_what_ran_where_and_old_ones_still_load(
    exported: tuple[Path, Manifest], tmp_path: Path
) -> None:
    _, manifest = exported
    assert manifest.target == "embedded"
    assert set(manifest.tested_on) == set(NETWORKS)
    assert all(device.startswith("CPU ") for device in manifest.tested_on.values())
    old = manifest.to_dict()
    del old["target"], old["tested_on"]
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    loaded = read_manifest(tmp_path)
    assert (loaded.target, loaded.tested_on) == ("embedded", {})
    assert loaded.models == manifest.models
