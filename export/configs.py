"""config.pbtxt files, built as protobuf messages from the tensor contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export import contract
from pikfix.export.contract import Model, Tensor
from pikfix.export.targets import Placement
from pikfix.networks import SIDE_MULTIPLE, PikFixConfig
from pikfix.networks.restoration import Restoration
from pikfix.photos import DEFAULT_MAX_PIXELS
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE

_DATA_TYPES = {"FP32": pb.TYPE_FP32, "BYTES": pb.TYPE_STRING}


@dataclass(frozen=True)
class ServingSettings:
    """How the models are scheduled; the contract says what they are.

    max_batch_size: a batch takes that many times the memory of a photo; on a GPU eight photos of
        256 x 256 keep it busy.
    queue_delay_us: how long a request waits for others of its shape. A photo takes tens to
        thousands of milliseconds, so half a millisecond costs nothing that a client can see.
    first_queue_size: requests that wait before the first step. It is the smallest of the queues:
        what has passed it holds tensors, 10 to 100 times larger than the file, and must not be
        refused later.
    restore_queue_size: requests that wait before `restore`, where work begins: decoding is quick,
        so under overload this is the queue that fills. On two cores ten photos wait for
        about eight seconds; of 24, under twice the load they could bear, most outlived the 20
        seconds that their clients waited.
    queue_size: requests that wait before each later step.
    nice: how much each sub-net gives way to the others on the embedded server's CPU; what has
        been begun is finished first.
    max_pixels: of a photo; more are refused before decoding.
    reference_side: references are scaled down to this longest side, or to the photo's where it is
        shorter. A quarter of a 512-pixel side gives 16384 keys per reference.
    tile_pixels: photos with more pixels are restored in exact, overlapping tiles where the
        embedded server's backend runs the network; that bounds its memory.
    instances: of each sub-net on the embedded server's CPU, which share its cores; None for what
        measured best with the runtime.
    file_instances: of the steps that decode and encode, each; None for what suits the place.
    """

    max_batch_size: int = 8
    queue_delay_us: int = 500
    first_queue_size: int = 8
    restore_queue_size: int = 10
    queue_size: int = 64
    max_pixels: int = DEFAULT_MAX_PIXELS
    reference_side: int = DEFAULT_REFERENCE_SIDE
    tile_pixels: int = 1 << 20
    nice: tuple[tuple[str, int], ...] = (("restore", 10), ("similarity", 5), ("colorize", 0))
    instances: int | None = None
    file_instances: int | None = None


class ConfiguresBackend(Protocol):
    """What knows how a backend is to load a sub-net: the runtime it was exported for."""

    def configure(self, model: Model, config: pb.ModelConfig) -> None:
        """Enter backend, file name, instances and the backend's parameters into a config."""


def build_configs(
    config: PikFixConfig,
    runtimes: Mapping[str, ConfiguresBackend],
    settings: ServingSettings | None = None,
    placement: Placement | None = None,
) -> dict[str, pb.ModelConfig]:
    """The configs of all seven models, by name.

    Args:
        config: of the networks.
        runtimes: for each sub-net, what it was exported for.
        settings: how the models are scheduled.
        placement: the server they are for, and where on it they run.
    """
    settings, placement = settings or ServingSettings(), placement or Placement()
    queue_size = placement.queue_size(settings.restore_queue_size)
    settings = replace(settings, restore_queue_size=queue_size)
    configs = {}
    for model in contract.subnets(config):
        configs[model.name] = _subnet(model, runtimes[model.name], settings)
        placement.adapt_subnet(model, configs[model.name])
    configs.update(fixed_configs(settings, placement))
    batches = [configs[name].max_batch_size for name in contract.SUBNETS]
    smallest = min(size or settings.max_batch_size for size in batches)
    for name in contract.ENSEMBLES:
        # A request's own batch passes every step whole.
        configs[name].max_batch_size = smallest
        for step in configs[name].ensemble_scheduling.step:
            _rename_tensors(step, configs[step.model_name])
    return configs


def fixed_configs(
    settings: ServingSettings | None = None, placement: Placement | None = None
) -> dict[str, pb.ModelConfig]:
    """The configs that no checkpoint and no runtime changes: python steps and ensembles."""
    settings, placement = settings or ServingSettings(), placement or Placement()
    settings = replace(
        settings,
        first_queue_size=placement.queue_size(settings.first_queue_size),
    )
    steps = {
        model.name: _python_step(model, settings, placement) for model in contract.python_steps()
    }
    ensembles = _ensembles(settings)
    for message in ensembles.values():
        placement.adapt_ensemble(message, settings.queue_size)
    return {**steps, **ensembles}


def _rename_tensors(step: pb.ModelEnsembling.Step, message: pb.ModelConfig) -> None:
    """Map a step's tensors by their order, where its backend has names of its own for them."""
    models = {m.name: m for m in (*contract.subnets(PikFixConfig()), *contract.python_steps())}
    model = models[step.model_name]
    for ours, theirs, mapped in (
        (model.inputs, message.input, step.input_map),
        (model.outputs, message.output, step.output_map),
    ):
        for tensor, entry in zip(ours, theirs, strict=True):
            if entry.name != tensor.name and tensor.name in mapped:
                mapped[entry.name] = mapped.pop(tensor.name)


def render(message: pb.ModelConfig) -> str:
    """A message as the text of a config.pbtxt."""
    header = "# Written by `pikfix export` from the tensor contract; change it there.\n"
    text: str = text_format.MessageToString(message)
    return header + text


def _base(model: Model, settings: ServingSettings) -> pb.ModelConfig:
    message = pb.ModelConfig(name=model.name, max_batch_size=settings.max_batch_size)
    for tensor in model.inputs:
        message.input.append(
            pb.ModelInput(
                name=tensor.name,
                data_type=_DATA_TYPES[tensor.data_type],
                dims=tensor.dims,
                optional=tensor.optional,
            )
        )
    for tensor in model.outputs:
        message.output.append(
            pb.ModelOutput(
                name=tensor.name, data_type=_DATA_TYPES[tensor.data_type], dims=tensor.dims
            )
        )
    return message


def _schedule(message: pb.ModelConfig, queue_size: int, delay_us: int) -> None:
    batching = message.dynamic_batching
    batching.max_queue_delay_microseconds = delay_us
    policy = batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True
    policy.max_queue_size = queue_size


def _subnet(model: Model, runtime: ConfiguresBackend, settings: ServingSettings) -> pb.ModelConfig:
    message = _base(model, settings)
    runtime.configure(model, message)
    # `restore` is also the first step of the ensemble `pikfix`, but the bound that protects the
    # server is decode_photo's: photos it accepted must find room here.
    first = model.name == contract.SUBNETS[0]
    size = settings.restore_queue_size if first else settings.queue_size
    _schedule(message, size, settings.queue_delay_us)
    message.model_warmup.append(_warmup(model, message))
    return message


def _python_step(model: Model, settings: ServingSettings, placement: Placement) -> pb.ModelConfig:
    message = _base(model, settings)
    message.backend = "python"
    # Decoding and encoding are single-threaded: an instance uses a core.
    count = settings.file_instances or placement.file_instances
    message.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    # One at a time: a batch would be worked off by one instance while the other has nothing to do.
    message.dynamic_batching.preferred_batch_size.append(1)
    if model.name == "decode_photo":
        _schedule(message, settings.first_queue_size, 0)
        set_parameter(message, "max_pixels", settings.max_pixels)
        if placement.max_side is not None:
            set_parameter(message, "max_side", placement.max_side)
        if placement.max_references is not None:
            set_parameter(message, "max_references", placement.max_references)
        set_parameter(message, "bucket_sides", ",".join(map(str, placement.bucket_sides)))
        set_parameter(message, "reference_side", settings.reference_side)
    else:
        _schedule(message, settings.queue_size, 0)
    return message


def set_parameter(message: pb.ModelConfig, name: str, value: object) -> None:
    """Set one of the backend's own parameters."""
    message.parameters[name].string_value = str(value)


_WARMUP_SIDE = 256


def _warmup(model: Model, message: pb.ModelConfig) -> pb.ModelWarmup:
    """One grey photo of a common bucket, so that no client pays for the first allocation."""
    # Without batching the batch is a dimension like the others.
    leading = () if message.max_batch_size else (1,)
    warmup = pb.ModelWarmup(name="grey photo", batch_size=min(1, message.max_batch_size))
    for tensor, entry in zip(model.inputs, message.input, strict=True):
        value = warmup.inputs[entry.name]
        value.data_type = entry.data_type
        value.dims.extend((*leading, *_warmup_dims(tensor)))
        value.zero_data = True
    return warmup


def _warmup_dims(tensor: Tensor) -> tuple[int, ...]:
    side = _WARMUP_SIDE
    if tensor.name.startswith(("warped_", "confidence_")):
        side >>= int(tensor.name.rsplit("_", 1)[1]) + 1
    channels = tuple(1 if size == -1 else size for size in tensor.dims[:-2])
    return (*channels, side, side)


def _ensembles(settings: ServingSettings) -> dict[str, pb.ModelConfig]:
    steps_of = {
        "pikfix": contract.SUBNETS,
        "pikfix_photo": ("decode_photo", *contract.SUBNETS, "encode_photo"),
    }
    # Tensor names are those of the contract everywhere, so a step's inputs and outputs map to
    # themselves. The channels of the warped maps do not occur in an ensemble.
    models = {m.name: m for m in (*contract.subnets(PikFixConfig()), *contract.python_steps())}
    configs = {}
    for ensemble in contract.ensembles():
        message = _base(ensemble, settings)
        message.platform = "ensemble"
        # A tensor that nothing takes keeps the ensemble from loading.
        taken = {t.name for name in steps_of[ensemble.name] for t in models[name].inputs}
        taken.update(tensor.name for tensor in ensemble.outputs)
        for name in steps_of[ensemble.name]:
            step = message.ensemble_scheduling.step.add(model_name=name, model_version=-1)
            for tensor in models[name].inputs:
                step.input_map[tensor.name] = tensor.name
            for tensor in models[name].outputs:
                if tensor.name in taken:
                    step.output_map[tensor.name] = tensor.name
        configs[ensemble.name] = message
    return configs


def set_network_parameters(model: Model, config: pb.ModelConfig, settings: ServingSettings) -> None:
    """Set what this project's own backends read, whatever runtime is behind them.

    `EMBEDDED_PARAMETERS` in `pikfix.export.targets` lists them; native backends get none.
    """
    set_parameter(config, "nice", dict(settings.nice)[model.name])
    if model.name == "restore":
        set_parameter(config, "tile_pixels", settings.tile_pixels)
        set_parameter(config, "tile_halo", Restoration.RECEPTIVE_FIELD_RADIUS)
        set_parameter(config, "tile_align", SIDE_MULTIPLE)
    elif model.name == "similarity":
        set_parameter(config, "side_multiple", SIDE_MULTIPLE)
