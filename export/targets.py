"""The servers a repository is written for, and what each of them understands.

`embedded` is the server of the nvidia-pytriton wheel: the python backend, with the networks behind
python-based backends of this project. `ngc` is NVIDIA's container with native backends. The python
steps are the same files on both; what differs is decided here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.profiles import Capacity, Profile, Shape, common_shapes, profile_of
from pikfix.photos import DEFAULT_BUCKET_SIDES, GPU_BUCKET_SIDES
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE
from pikfix.systems.base import Step

TargetName = Literal["embedded", "ngc"]
Accelerator = Literal["cuda", "tensorrt"]

_SINCE = {
    # On older servers an unknown field keeps a model from loading.
    "max_inflight_requests": (2, 63),
}


@dataclass(frozen=True)
class Target:
    """A server to write for.

    name: as `pikfix export --target` takes it.
    server: the lowest version of tritonserver that has to load the repository.
    native: whether its backends for the networks are NVIDIA's own.
    """

    name: TargetName
    server: tuple[int, int]
    native: bool

    def has(self, feature: str) -> bool:
        """Whether the server's version knows a feature of `_SINCE`."""
        return self.server >= _SINCE[feature]


EMBEDDED = Target("embedded", (2, 51), native=False)
NGC = Target("ngc", (2, 67), native=True)
"""The container 26.03 and later."""

TARGETS = {target.name: target for target in (EMBEDDED, NGC)}

EMBEDDED_PARAMETERS = ("tile_pixels", "tile_halo", "tile_align", "side_multiple", "nice")
"""Read by this project's own backend. The native ones look their parameters up by name and would
ignore these (onnxruntime_backend, src/onnxruntime.cc); a config must not promise what is not done.
"""

GPU_SLOT = "GPU_SLOT"
"""Resource that the networks share on each GPU, where the server runs with --rate-limit."""

_HEURISTIC, _AS_REQUESTED = "1", "1"
"""As onnxruntime_backend numbers them: OrtCudnnConvAlgoSearchHeuristic, kSameAsRequested."""

_GRAPH_BATCHES = (1, 2, 4, 8)
"""Batches that CUDA graphs are captured for; others run without."""

_CACHE = "/tmp"
"""Where onnxruntime keeps the engines that it builds. It creates the last folder of a path only."""


@dataclass(frozen=True)
class Placement:
    """Where and how the networks of a repository run.

    target: the server.
    device: "cpu" or "cuda".
    accelerator: what native onnxruntime runs on a GPU: its own CUDA kernels, or TensorRT engines
        that it builds when shapes first arrive.
    reference_side: longest side of references.
    capacity: the largest shapes that native backends, which do not tile, have memory for.
    """

    target: Target = EMBEDDED
    device: str = "cpu"
    accelerator: Accelerator = "cuda"
    reference_side: int = DEFAULT_REFERENCE_SIDE
    capacity: Capacity = field(default_factory=Capacity)

    def adapt_subnet(self, model: Step, message: pb.ModelConfig) -> None:
        """Fit a sub-net's config, as its runtime has written it, to the server."""
        if not self.target.native:
            return
        for name in EMBEDDED_PARAMETERS:
            message.parameters.pop(name, None)
        self._instances(model, message)
        if self.device != "cuda":
            # Triton's cache refuses buffers on a GPU, with an error in its log for each photo.
            # A step's answer depends on its inputs and its version, and both are in the cache's
            # key. That is not true of an ensemble, whose version does not change with its steps'.
            message.response_cache.enable = model.cacheable
            return
        if message.max_batch_size:  # 0: its backend merges nothing
            message.max_batch_size = self.capacity.of(model).batch
        if message.backend == "onnxruntime":
            self._onnxruntime(model, message)
        elif message.backend == "tensorrt":
            self._tensorrt(model, message)

    def adapt_ensemble(self, message: pb.ModelConfig, in_flight: int) -> None:
        """Bound what an ensemble holds between its steps, where the server can."""
        if self.target.has("max_inflight_requests"):
            message.ensemble_scheduling.max_inflight_requests = in_flight

    def in_flight(self, photos: int) -> int:
        """How many photos may be worked on where that was sized for a CPU's seconds per photo.

        On a GPU, where 32 at a time were answered within half a second, more can wait as long.
        """
        return 4 * photos if self.device == "cuda" else photos

    def max_side(self, steps: Sequence[Step]) -> int | None:
        """The longest side of a photo that the steps can take on this server."""
        return self.capacity.max_side(steps) if self.target.native else None

    def max_references(self, steps: Sequence[Step]) -> int | None:
        """The most references of a photo that the steps can take on this server."""
        return self.capacity.max_references(steps) if self.target.native else None

    @property
    def file_instances(self) -> int:
        """How many photos are decoded, and how many encoded, at a time.

        Beside networks on the same CPU, two use two cores while those of another photo run. Beside
        a GPU the cores have little else to do, and milliseconds a photo and core would be its
        limit: then decoding has half the cores, and encoding the other half, of this machine,
        which should be the one that serves.
        """
        return max(2, (os.cpu_count() or 2) // 2) if self.device == "cuda" else 2

    @property
    def bucket_sides(self) -> tuple[int, ...]:
        """What sides photos are padded to."""
        return GPU_BUCKET_SIDES if self.device == "cuda" else DEFAULT_BUCKET_SIDES

    def profile(self, model: Step) -> Profile:
        """The shapes that a sub-net is optimized for."""
        largest = self.capacity.of(model)
        return profile_of(model, largest, reference_side=self.reference_side)

    def _instances(self, model: Step, message: pb.ModelConfig) -> None:
        del message.instance_group[:]
        if self.device != "cuda":
            message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
            return
        # No list of GPUs: one instance on each that the server sees.
        group = message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        group.rate_limiter.resources.add(name=GPU_SLOT, count=1)
        group.rate_limiter.priority = model.priority

    def _onnxruntime(self, model: Step, message: pb.ModelConfig) -> None:
        accelerators = message.optimization.execution_accelerators.gpu_execution_accelerator
        if self.accelerator == "tensorrt":
            engine = accelerators.add(name="tensorrt")
            profile = self.profile(model)
            parameters = {
                "precision_mode": "FP32",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": f"{_CACHE}/pikfix-tensorrt-{model.name}",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": f"{_CACHE}/pikfix-tensorrt-{model.name}",
                "trt_profile_min_shapes": _shapes(profile, "smallest"),
                "trt_profile_opt_shapes": _shapes(profile, "common"),
                "trt_profile_max_shapes": _shapes(profile, "largest"),
            }
            for name, value in parameters.items():
                engine.parameters[name] = value
        accelerators.add(name="cuda")
        # The backend resets what is set under the accelerator to what these say, by number.
        # Shapes vary: a search for the best convolution at each new one would take seconds.
        message.parameters["cudnn_conv_algo_search"].string_value = _HEURISTIC
        # Doubling the arena for one large photo would hold the memory for good.
        message.parameters["arena_extend_strategy"].string_value = _AS_REQUESTED

    def _tensorrt(self, model: Step, message: pb.ModelConfig) -> None:
        cuda = message.optimization.cuda
        cuda.output_copy_stream = True
        # One spec per shape without a lower bound: a graph is captured for exactly that shape.
        cuda.graphs = True
        largest = self.capacity.of(model)
        batches = [size for size in _GRAPH_BATCHES if size <= largest.batch]
        for shapes in common_shapes(model, largest, reference_side=self.reference_side):
            for batch in batches:
                spec = cuda.graph_spec.add(batch_size=batch)
                for name, shape in shapes.items():
                    spec.input[name].dim.extend(shape)


def _shapes(profile: Profile, end: str) -> str:
    """Shapes of all inputs as onnxruntime writes them, `name:1x1x256x256,...`."""
    written = []
    for name, ranges in profile.ranges.items():
        shape: Shape = getattr(ranges, end)
        written.append(f"{name}:{'x'.join(map(str, shape))}")
    return ",".join(written)
