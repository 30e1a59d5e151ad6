"""``pikfix train``: train the networks on a folder of colour photos."""

from __future__ import annotations

import dataclasses
import functools
import typing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pikfix.cli.choices import Device
from pikfix.cli.problems import INTERRUPTED, UsageError
from pikfix.systems.pikfix.training.config import SUBNETS, TERMS, ColorInput, preset
from pikfix.systems.pikfix.training.run import train
from pikfix.systems.registry import SYSTEMS, system_of
from pikfix.training.config import Precision, Schedule
from pikfix.training.loop import Budget
from pikfix.training.run import RunOptions, usual_precision
from pikfix.training.stage_run import StageConfig, stage_kind, train_stage


class Preset(str, Enum):
    """Sizes of the networks."""

    compact = "compact"
    paper = "paper"


def command(
    *,
    photos: Annotated[Path, typer.Option(help="Folder of colour photos.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="RUN_DIR", help="The run.", show_default=False),
    ],
    val: Annotated[
        Path | None, typer.Option(help="Folder of photos to measure with, never trained on.")
    ] = None,
    name: Annotated[
        Preset, typer.Option("--preset", help="Networks, and options that suit them.")
    ] = Preset.compact,
    ablation: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a field of the networks' configuration."),
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SUBNET=]CHECKPOINT",
            help="Start from a checkpoint's weights, or from one sub-net's of it; may be repeated. "
            "With --steps 0 this merges sub-nets that were trained apart.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run exactly.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Budget of the whole run over all resumes.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Budget of the whole run.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.cpu,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on a CPU.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the networks; PyTorch's choice.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare the data.")] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per step over all devices.")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the training crops.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="bf16 is autocast; weights stay fp32. Default: bf16 on a GPU and on a CPU with "
            "products of bfloat16, else fp32; a resumed run keeps its own.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Of the learning rate.")] = None,
    system: Annotated[
        str,
        typer.Option(
            help="What is trained; damage finds and fills cracks and stains, latent translates."
        ),
    ] = "pikfix",
    stage: Annotated[
        str | None,
        typer.Option(
            help="Of another system than pikfix: detector or filler of damage; vae_old, vae_clean "
            "or mapping of latent."
        ),
    ] = None,
    stamps: Annotated[
        Path | None, typer.Option(help="Folder of pictures of dirt, for the system damage.")
    ] = None,
    old_photos: Annotated[
        Path | None,
        typer.Option(help="Folder of real old photos, for the stage vae_old of the system latent."),
    ] = None,
    parts: Annotated[
        str,
        typer.Option(
            "--train",
            help="The sub-nets to train, separated by commas; tone is the end of restoration.",
        ),
    ] = "restoration,similarity,colorization",
    color_input: Annotated[
        ColorInput | None,
        typer.Option(help="Luminance the colours are trained on; joint trains end to end."),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help=f"Weight of a term ({', '.join(TERMS)}), 0 switches it off; also "
            "chroma_emphasis, histogram_target, discriminator_width.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the samples: sibling, near, random, references, neighbours, degraded, "
            "strength, sparse_damage_share, hue_rotation, jitter, affine, side.",
        ),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the updates: warmup, ema, clip, beta1, beta2, weight_decay, "
            "temperature_start, temperature_anneal.",
        ),
    ] = None,
    feature_weights: Annotated[
        Path | None,
        typer.Option(help="VGG-19 or SqueezeNet 1.1 for the perceptual and distillation terms."),
    ] = None,
    neighbours: Annotated[
        Path | None, typer.Option(help="Table of the nearest photos; made anew without it.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File to keep decoded photos in, for large folders.")
    ] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Between checkpoints.")] = 5.0,
    validation_minutes: Annotated[float, typer.Option(help="Between validations.")] = 20.0,
    log_steps: Annotated[int, typer.Option(min=1, help="Steps per row of training.csv.")] = 50,
) -> None:
    """Train the networks; RUN_DIR/model.safetensors is usable from the first checkpoint on.

    A run ends when its budget is used; without --minutes and --steps it goes on until it is
    interrupted, which saves it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    options = RunOptions(
        photos=photos,
        folder=out,
        validation=val,
        old_photos=old_photos,
        feature_weights=feature_weights,
        neighbours=neighbours,
        init=tuple(_origin(word, system) for word in init or []),
        cache=cache,
        resume=resume,
        device=device.value,
        devices=devices,
        workers=workers,
        budget=Budget(steps, minutes, checkpoint_minutes, validation_minutes, log_steps),
    )
    updates = {
        "batch": batch,
        "learning_rate": lr,
        "precision": precision or usual_precision(out, resume=resume, device=device.value),
        "schedule": schedule,
    }
    try:
        if system == "pikfix":
            if stage is not None or stamps is not None or old_photos is not None:
                raise UsageError(
                    "--stage, --stamps and --old-photos go with another --system, such as damage"
                )
            config = preset(name.value)
            config = dataclasses.replace(
                config,
                network=_changed(config.network, ablation, "--ablation"),
                data=_changed(config.data, data, "--data", {"crop": crop}),
                loss=_changed(config.loss, loss, "--loss"),
                optimizer=_changed(config.optimizer, optimizer, "--optimizer", updates),
                parts=tuple(part.strip() for part in parts.split(",")),
                color_input=color_input or config.color_input,
                seed=seed,
            )
            run = functools.partial(train, config, options)
        else:
            if loss or data or color_input or neighbours:
                raise UsageError(
                    "--loss, --data, --color-input and --neighbours go with --system pikfix alone: "
                    "leave them out"
                )
            kind = system_of(system).stage(stage)
            plan = StageConfig(
                system,
                stage or "",
                _changed(_preset(system, name.value), ablation, "--ablation").to_dict(),
                optimizer=_changed(kind.optimizer, optimizer, "--optimizer", updates),
                seed=seed,
            )
            plan = plan if crop is None else dataclasses.replace(plan, crop=crop)
            stage_kind(plan, options, stamps)
            run = functools.partial(train_stage, plan, options, stamps)
    except ValueError as error:
        raise UsageError(str(error)) from error
    result = run()
    if result.first:
        took = f"step {result.step} after {result.minutes:.1f} minutes"
        print(f"{result.reason} at {took}: {result.model}")
    if result.reason == "stopped":
        raise typer.Exit(INTERRUPTED)


def _preset(system: str, name: str) -> Any:
    presets = system_of(system).presets
    if name not in presets:
        raise UsageError(f"{system} has no preset {name}: choose from {', '.join(presets)}")
    return presets[name]


def _origin(word: str, system: str) -> tuple[str | None, Path]:
    """Split `[SUBNET=]CHECKPOINT`; a stage of another system has the name of what it trains."""
    part, equals, path = word.partition("=")
    if equals and part in (
        SUBNETS if system == "pikfix" else (*system_of(system).stages, *SYSTEMS)
    ):
        return part, Path(path)
    return None, Path(word)


def _changed(
    group: Any, words: list[str] | None, option: str, shortcuts: dict[str, Any] | None = None
) -> Any:
    """A copy of a frozen dataclass with `NAME=VALUE` words applied."""
    kinds = typing.get_type_hints(type(group))
    values = {key: value for key, value in (shortcuts or {}).items() if value is not None}
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or key not in kinds:
            raise UsageError(f"{option} {word}: give NAME=VALUE with one of {', '.join(kinds)}")
        values[key] = _parse(text, kinds[key], f"{option} {word}")
    return dataclasses.replace(group, **values)


def _parse(text: str, kind: Any, where: str) -> Any:
    """Text as a value of a configuration field's type."""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        if text == "none":
            return None
        return _parse(text, next(one for one in arguments if one is not type(None)), where)
    if typing.get_origin(kind) is tuple:
        item = arguments[0]
        return tuple(_parse(part, item, where) for part in text.split(","))
    if dataclasses.is_dataclass(kind):
        raise UsageError(f"{where}: give none, or train it as a system of its own and --init it")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{where}: give true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise UsageError(f"{where}: give {word}") from None
    return text
