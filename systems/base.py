"""What a system is made of, as plain data: tensors, steps, ensembles.

One declaration feeds ONNX axes, TensorRT profiles, config.pbtxt, warm-up requests, the parity gate
and the tests. A system is a folder beside this file and a line in `pikfix.systems.registry`; no
other module knows one by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

DataType = Literal["FP32", "BYTES"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

PHOTO_SIDES = ("H", "W")
"""Symbols of a photo's height and width, which may be any."""
WORKING_SIDES = ("h", "w")
"""Symbols of a working size, a photo's own or a smaller one."""
REFERENCE_SIDES = ("H_r", "W_r")
REFERENCES = "R"
"""Symbol of the count of references."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    name: as it is called everywhere.
    shape: without the batch dimension. An int is fixed; a symbol is free, and `"h/4"` is a quarter
        of the size that `"h"` stands for.
    dtype: as Triton writes it.
    optional: whether a request may leave it out.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: DataType = "FP32"
    optional: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as Triton's configs have it: -1 is any size."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)

    @property
    def symbols(self) -> tuple[tuple[str, int] | None, ...]:
        """For each dimension its symbol and what divides it, or None where it is fixed."""
        return tuple(None if isinstance(size, int) else _symbol(size) for size in self.shape)

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with sizes in place of the symbols.

        Raises:
            KeyError: a symbol has no size.
        """
        found = []
        for size, symbol in zip(self.shape, self.symbols, strict=True):
            found.append(sizes[symbol[0]] // symbol[1] if symbol else int(size))
        return tuple(found)


def _symbol(size: str) -> tuple[str, int]:
    name, _, divisor = size.partition("/")
    return name, int(divisor or 1)


@dataclass(frozen=True)
class Model:
    """A served model's inputs and outputs."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Step(Model):
    """A sub-net that is exported and served by itself.

    system: whose it is.
    config: the configuration that it belongs to.
    module: takes the whole model to a torch module whose forward has the inputs and the outputs, in
        their order.
    halo: no place of the output depends on an input place farther away, so that large photos can
        be computed in tiles with that overlap, exactly; None where they cannot.
    side_multiple: of the sides of every picture.
    working_limit: longest side of its working size; None: the usual one.
    lowest_precision: the lowest that its arithmetic bears: "int8", "bf16", or "fp32" for what stays
        in float32 whatever is asked for.
    correlation: whether it holds the correlation warp, whose map a runtime without its kernel
        writes, and whose softmax magnifies rounding.
    priority: on a GPU that several steps want, 1 goes first.
    nice: how much it gives way to other steps on a CPU.
    cacheable: whether the response cache may keep its answers.
    """

    system: str = ""
    config: Any = field(default=None, compare=False, repr=False)
    module: Callable[[Any], Any] = field(default=lambda model: model, compare=False, repr=False)
    halo: int | None = None
    side_multiple: int = 1
    working_limit: int | None = None
    lowest_precision: Precision = "int8"
    correlation: bool = False
    priority: int = 1
    nice: int = 0
    cacheable: bool = False

    @property
    def takes_photos(self) -> bool:
        """Whether its pictures are photos of any size, not of the working size."""
        symbols = {symbol[0] for symbol in self.inputs[0].symbols if symbol}
        return bool(symbols & set(PHOTO_SIDES))

    def precision(self, asked: Precision) -> Precision:
        """What it computes in where `asked` is asked for."""
        if self.lowest_precision == "fp32":
            return "fp32"
        return "bf16" if (asked, self.lowest_precision) == ("int8", "bf16") else asked


@dataclass(frozen=True)
class Ensemble(Model):
    """What clients call: models that run one after another, by their names."""

    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Shapes of one measurement: batch, references, photo sides and reference sides."""

    batch: int
    references: int
    photo: tuple[int, int]
    reference: tuple[int, int]

    def within(self, max_references: int) -> Case:
        """The same with no more references than a repository takes."""
        return replace(self, references=min(self.references, max_references))


@dataclass(frozen=True)
class System:
    """A paper's networks and what has to be known to export and serve them.

    name: as checkpoints store it.
    config_type: its configuration, with `from_dict` and `to_dict`, and a default.
    build: a configuration to a torch module with the attribute `config`.
    steps: the steps of a configuration, in the order a photo passes them. Their names are the same
        for all configurations.
    python_steps: steps that are code, files in and files out, as far as this system uses them:
        those of one name are one model for all systems (`pikfix.systems.registry.python_steps`).
    ensembles: what clients call.
    sample_inputs: draws tensors that look like photos, for a seeded `numpy.random.Generator` and a
        case: at least what no step before gives.
    presets: configurations by name.
    stages: what trains it, by name: where a function of `pikfix.training.stage_run.Material` that
        gives a `pikfix.training.stage.Stage` lies, as `module:name`.
    protocols: what measures it, by name: where its `pikfix.evaluation.protocol.Protocol` lies.
    releases: what of it others have published: where a tuple of
        `pikfix.systems.releases.Release` lies, as `module:name`; empty for nothing.
    """

    name: str
    config_type: Any
    build: Callable[[Any], Any]
    steps: Callable[[Any], tuple[Step, ...]]
    python_steps: tuple[Model, ...]
    ensembles: tuple[Ensemble, ...]
    sample_inputs: Callable[[Any, Case], dict[str, Any]]
    presets: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)
    releases: str = ""

    @property
    def step_names(self) -> tuple[str, ...]:
        """Of every configuration."""
        return tuple(step.name for step in self.steps(self.config_type()))

    def stage(self, name: str | None) -> Any:
        """What makes the stage of a name.

        Raises:
            ValueError: there is none; the message names those there are.
        """
        if name is None or name not in self.stages:
            which = "needs a stage" if name is None else f"has no stage {name!r}"
            names = ", ".join(self.stages) or "none"
            raise ValueError(f"{self.name} {which}: choose from {names}")
        return _imported(self.stages[name])

    def imported_protocols(self) -> dict[str, Any]:
        """The protocols themselves, by name."""
        return {name: _imported(place) for name, place in self.protocols.items()}

    def imported_releases(self) -> tuple[Any, ...]:
        """What of it others have published."""
        found: tuple[Any, ...] = _imported(self.releases) if self.releases else ()
        return found

    def modules(self, model: Any, steps: Sequence[Step]) -> dict[str, Any]:
        """The torch modules of steps in evaluation mode, by name."""
        return {step.name: step.module(model).eval() for step in steps}


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
