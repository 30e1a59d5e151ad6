"""config.pbtxt files, built as protobuf messages from what a system declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.profiles import sizes
from pikfix.export.targets import Placement
from pikfix.layers.sizes import SIDE_MULTIPLE
from pikfix.photos import DEFAULT_MAX_PIXELS
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE
from pikfix.systems.base import Ensemble, Model, Step, System
from pikfix.systems.registry import python_steps

_DATA_TYPES = {"FP32": pb.TYPE_FP32, "BYTES": pb.TYPE_STRING}


@dataclass(frozen=True)
class ServingSettings:
    """How the models are scheduled; the contract says what they are.

    max_batch_size: a batch takes that many times the memory of a photo; on a GPU eight photos of
        256 x 256 keep it busy.
    queue_delay_us: how long a request waits for others of its shape. A photo takes tens to
        thousands of milliseconds, so half a millisecond costs nothing that a client can see.
    max_in_flight: photos that are worked on or wait between decoding and encoding; further ones
        are refused at once (`pikfix.photos.in_flight`). On two cores ten photos wait for about
        eight seconds; of 24, under twice the load they could bear, most outlived the 20 seconds
        that their clients waited.
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
    max_in_flight: int = 16
    max_pixels: int = DEFAULT_MAX_PIXELS
    reference_side: int = DEFAULT_REFERENCE_SIDE
    tile_pixels: int = 1 << 20
    instances: int | None = None
    file_instances: int | None = None


class ConfiguresBackend(Protocol):
    """What knows how a backend is to load a sub-net: the runtime it was exported for."""

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Enter backend, file name, instances and the backend's parameters into a config."""


def build_configs(
    system: System,
    config: Any,
    runtimes: Mapping[str, ConfiguresBackend],
    settings: ServingSettings | None = None,
    placement: Placement | None = None,
) -> dict[str, pb.ModelConfig]:
    """The configs of all of a system's models, by name.

    Args:
        system: whose.
        config: of its networks.
        runtimes: for each sub-net, what it was exported for.
        settings: how the models are scheduled.
        placement: the server they are for, and where on it they run.
    """
    settings, placement = settings or ServingSettings(), placement or Placement()
    configs = {}
    steps = system.steps(config)
    for step in steps:
        configs[step.name] = _network(step, runtimes[step.name], settings)
        placement.adapt_subnet(step, configs[step.name])
    configs.update(fixed_configs(system, settings, placement, config=config))
    batches = [configs[step.name].max_batch_size for step in steps]
    smallest = min(size or settings.max_batch_size for size in batches)
    networks = {step.name: step for step in steps}
    for ensemble in system.ensembles:
        # A request's own batch passes every step whole.
        configs[ensemble.name].max_batch_size = smallest
        for entry in configs[ensemble.name].ensemble_scheduling.step:
            if entry.model_name in networks:
                _rename_tensors(entry, networks[entry.model_name], configs[entry.model_name])
    return configs


def fixed_configs(
    system: System,
    settings: ServingSettings | None = None,
    placement: Placement | None = None,
    *,
    config: Any = None,
) -> dict[str, pb.ModelConfig]:
    """The configs that no runtime changes: python steps and ensembles.

    Args:
        system: whose.
        settings: how the models are scheduled.
        placement: the server they are for, and where on it they run.
        config: of the networks, whose halos and names are the same for all; a default when None.
    """
    settings, placement = settings or ServingSettings(), placement or Placement()
    settings = replace(settings, max_in_flight=placement.in_flight(settings.max_in_flight))
    steps = system.steps(config or system.config_type())
    configs = {
        model.name: _python_step(model, steps, settings, placement)
        for model in python_steps(system)
    }
    models = {model.name: model for model in (*steps, *system.python_steps)}
    for ensemble in system.ensembles:
        configs[ensemble.name] = _ensemble(ensemble, models, settings)
        placement.adapt_ensemble(configs[ensemble.name], settings.max_in_flight)
    return configs


def _rename_tensors(entry: pb.ModelEnsembling.Step, model: Model, message: pb.ModelConfig) -> None:
    """Map a step's tensors by their order, where its backend has names of its own for them."""
    for ours, theirs, mapped in (
        (model.inputs, message.input, entry.input_map),
        (model.outputs, message.output, entry.output_map),
    ):
        for tensor, named in zip(ours, theirs, strict=True):
            if named.name != tensor.name and tensor.name in mapped:
                mapped[named.name] = mapped.pop(tensor.name)


def render(message: pb.ModelConfig) -> str:
    """A message as the text of a config.pbtxt."""
    header = "# Written by `pikfix export` from what the system declares; change it there.\n"
    text: str = text_format.MessageToString(message)
    return header + text


def _base(model: Model, settings: ServingSettings) -> pb.ModelConfig:
    message = pb.ModelConfig(name=model.name, max_batch_size=settings.max_batch_size)
    for tensor in model.inputs:
        message.input.append(
            pb.ModelInput(
                name=tensor.name,
                data_type=_DATA_TYPES[tensor.dtype],
                dims=tensor.dims,
                optional=tensor.optional,
            )
        )
    for tensor in model.outputs:
        message.output.append(
            pb.ModelOutput(name=tensor.name, data_type=_DATA_TYPES[tensor.dtype], dims=tensor.dims)
        )
    return message


def _network(step: Step, runtime: ConfiguresBackend, settings: ServingSettings) -> pb.ModelConfig:
    message = _base(step, settings)
    runtime.configure(step, message)
    # Without a queue policy: see pikfix.photos.in_flight.
    message.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    message.model_warmup.append(_warmup(step, message))
    return message


def _python_step(
    model: Model, steps: Sequence[Step], settings: ServingSettings, placement: Placement
) -> pb.ModelConfig:
    message = _base(model, settings)
    message.backend = "python"
    # Decoding and encoding are single-threaded: an instance uses a core.
    count = settings.file_instances or placement.file_instances
    message.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    # One at a time: a batch would be worked off by one instance while the other has nothing to do.
    message.dynamic_batching.preferred_batch_size.append(1)
    if any(tensor.dtype == "FP32" for tensor in model.outputs):  # it decodes
        set_parameter(message, "max_in_flight", settings.max_in_flight)
        set_parameter(message, "max_pixels", settings.max_pixels)
        for name, largest in (
            ("max_side", placement.max_side(steps)),
            ("max_references", placement.max_references(steps)),
        ):
            if largest is not None:
                set_parameter(message, name, largest)
        set_parameter(message, "bucket_sides", ",".join(map(str, placement.bucket_sides)))
        set_parameter(message, "reference_side", settings.reference_side)
    return message


def set_parameter(message: pb.ModelConfig, name: str, value: object) -> None:
    """Set one of the backend's own parameters."""
    message.parameters[name].string_value = str(value)


_WARMUP_SIDE = 256


def _warmup(model: Step, message: pb.ModelConfig) -> pb.ModelWarmup:
    """One grey photo of a common bucket, so that no client pays for the first allocation."""
    # Without batching the batch is a dimension like the others.
    leading = () if message.max_batch_size else (1,)
    warmup = pb.ModelWarmup(name="grey photo", batch_size=min(1, message.max_batch_size))
    for tensor, entry in zip(model.inputs, message.input, strict=True):
        value = warmup.inputs[entry.name]
        value.data_type = entry.data_type
        value.dims.extend((*leading, *tensor.sized(sizes((_WARMUP_SIDE, _WARMUP_SIDE)))))
        value.zero_data = True
    return warmup


def _ensemble(
    ensemble: Ensemble, models: Mapping[str, Model], settings: ServingSettings
) -> pb.ModelConfig:
    """Tensor names are the same everywhere, so a step's inputs and outputs map to themselves."""
    message = _base(ensemble, settings)
    message.platform = "ensemble"
    # A tensor that nothing takes keeps the ensemble from loading.
    taken = {tensor.name for name in ensemble.steps for tensor in models[name].inputs}
    taken.update(tensor.name for tensor in ensemble.outputs)
    for name in ensemble.steps:
        entry = message.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        for tensor in models[name].inputs:
            entry.input_map[tensor.name] = tensor.name
        for tensor in models[name].outputs:
            if tensor.name in taken:
                entry.output_map[tensor.name] = tensor.name
    return message


def set_network_parameters(step: Step, config: pb.ModelConfig, settings: ServingSettings) -> None:
    """Set what this project's own backends read, whatever runtime is behind them.

    `EMBEDDED_PARAMETERS` in `pikfix.export.targets` lists them; native backends get none.
    """
    set_parameter(config, "nice", step.nice)
    if step.halo is not None:
        set_parameter(config, "tile_pixels", settings.tile_pixels)
        set_parameter(config, "tile_halo", step.halo)
        set_parameter(config, "tile_align", SIDE_MULTIPLE)
    # Of pictures at full size; maps at a fraction of it are as the step before gives them.
    whole = all(divisor == 1 for t in step.inputs for _, divisor in filter(None, t.symbols))
    if step.side_multiple > 1 and whole:
        set_parameter(config, "side_multiple", step.side_multiple)
