"""The servers a repository is written for, and what each of them understands.

`embedded` is the server of the nvidia-pytriton wheel: the python backend, with the networks behind
python-based backends of this project. `ngc` is NVIDIA's container with native backends. The python
steps are the same files on both; what differs is decided here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.contract import Model
from pikfix.export.profiles import Profile, Shape, common_shapes, profiles_of
from pikfix.photos import DEFAULT_BUCKET_SIDES
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE

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

_PRIORITIES = {"colorize": 1, "similarity": 2, "restore": 3}
"""1 goes first: a photo that is nearly done holds the most memory."""

_CACHED = ("restore",)
"""Whose answers the response cache may keep. A sub-net's answer depends on its inputs and its
version, and both are in the cache's key. That is not true of an ensemble, whose version does not
change with its steps', nor of decode_photo, which reads a library and the clock. `restore` is the
heaviest step, and its input does not change when a photo is tried with another reference."""

NATIVE_MAX_SIDE = DEFAULT_BUCKET_SIDES[-1]
"""Native backends do not tile: the largest photo is the largest bucket."""


@dataclass(frozen=True)
class Placement:
    """Where and how the networks of a repository run.

    target: the server.
    device: "cpu" or "cuda".
    accelerator: what native onnxruntime runs on a GPU: its own CUDA kernels, or TensorRT engines
        that it builds when shapes first arrive.
    max_batch: largest batch.
    reference_side: longest side of references.
    """

    target: Target = EMBEDDED
    device: str = "cpu"
    accelerator: Accelerator = "cuda"
    max_batch: int = 8
    reference_side: int = DEFAULT_REFERENCE_SIDE

    def adapt_subnet(self, model: Model, message: pb.ModelConfig) -> None:
        """Fit a sub-net's config, as its runtime has written it, to the server."""
        if not self.target.native:
            return
        for name in EMBEDDED_PARAMETERS:
            message.parameters.pop(name, None)
        self._instances(model, message)
        if model.name in _CACHED:
            message.response_cache.enable = True
        if self.device != "cuda":
            return
        if message.backend == "onnxruntime":
            self._onnxruntime(model, message)
        elif message.backend == "tensorrt":
            self._tensorrt(model, message)

    def adapt_ensemble(self, message: pb.ModelConfig, queue_size: int) -> None:
        """Bound what an ensemble holds between its steps, where the server can."""
        if self.target.has("max_inflight_requests"):
            message.ensemble_scheduling.max_inflight_requests = queue_size

    def queue_size(self, size: int) -> int:
        """How many may wait where that was sized for a CPU's seconds per photo.

        A GPU takes milliseconds, so that more can wait as long; by how much has not been measured.
        """
        return 4 * size if self.device == "cuda" else size

    @property
    def max_side(self) -> int | None:
        """The longest side of a photo that the networks can take on this server."""
        return NATIVE_MAX_SIDE if self.target.native else None

    def profiles(self, model: Model) -> tuple[Profile, ...]:
        """The shapes that a sub-net is optimized for."""
        return profiles_of(model, max_batch=self.max_batch, reference_side=self.reference_side)

    def _instances(self, model: Model, message: pb.ModelConfig) -> None:
        del message.instance_group[:]
        if self.device != "cuda":
            message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
            return
        # No list of GPUs: one instance on each that the server sees.
        group = message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        group.rate_limiter.resources.add(name=GPU_SLOT, count=1)
        group.rate_limiter.priority = _PRIORITIES[model.name]

    def _onnxruntime(self, model: Model, message: pb.ModelConfig) -> None:
        accelerators = message.optimization.execution_accelerators.gpu_execution_accelerator
        profiles = self.profiles(model)
        # It takes one profile (microsoft/onnxruntime#23965), whose largest shape it holds memory
        # for; `restore` has two because a batch of the largest photos fits no GPU.
        if self.accelerator == "tensorrt" and len(profiles) == 1:
            engine = accelerators.add(name="tensorrt")
            parameters = {
                "precision_mode": "FP32",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": f"/tmp/pikfix-tensorrt/{model.name}",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": "/tmp/pikfix-tensorrt",
                "trt_profile_min_shapes": _shapes(profiles[0], "smallest"),
                "trt_profile_opt_shapes": _shapes(profiles[0], "common"),
                "trt_profile_max_shapes": _shapes(profiles[0], "largest"),
            }
            for name, value in parameters.items():
                engine.parameters[name] = value
        cuda = accelerators.add(name="cuda")
        # Shapes vary: a search for the best convolution at each new one would take seconds.
        cuda.parameters["cudnn_conv_algo_search"] = "HEURISTIC"
        # Doubling the arena for one large photo would hold the memory for good.
        cuda.parameters["arena_extend_strategy"] = "kSameAsRequested"

    def _tensorrt(self, model: Model, message: pb.ModelConfig) -> None:
        profiles = self.profiles(model)
        if len(profiles) > 1:
            message.instance_group[0].profile.extend(str(i) for i in range(len(profiles)))
        cuda = message.optimization.cuda
        cuda.output_copy_stream = True
        # One spec per shape without a lower bound: a graph is captured for exactly that shape.
        cuda.graphs = True
        for shapes in common_shapes(model, reference_side=self.reference_side):
            spec = cuda.graph_spec.add(batch_size=1)
            for name, shape in shapes.items():
                spec.input[name].dim.extend(shape)


def _shapes(profile: Profile, end: str) -> str:
    """Shapes of all inputs as onnxruntime writes them, `name:1x1x256x256,...`."""
    written = []
    for name, ranges in profile.ranges.items():
        shape: Shape = getattr(ranges, end)
        written.append(f"{name}:{'x'.join(map(str, shape))}")
    return ",".join(written)
