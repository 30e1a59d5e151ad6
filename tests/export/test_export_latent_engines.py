"""TensorRT's own parser and builder on every network of the system latent, in every variant."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rtx import API, OPTIONS, tensorrt_for_rtx

from pikfix.export.onnx import export_onnx
from pikfix.export.precision import typed
from pikfix.export.profiles import Largest, profile_of
from pikfix.export.runtimes.tensorrt_lint import refusals
from pikfix.systems.latent.networks import PRESETS, Latent, LatentConfig
from pikfix.systems.registry import system_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SYSTEM = system_of("latent")
TINY = {
    "vae_channels": 4,
    "vae_blocks": 1,
    "mapping_channels": 8,
    "attention_channels": 4,
    "context_blocks": 1,
    "trunk_blocks": 1,
    "limit": 128,
}


@pytest.fixture(scope="module")
def trt() -> Iterator[Any]:
    with tensorrt_for_rtx() as found:
        yield found


def built(config: LatentConfig, name: str, precision: str, side: int, folder: Path) -> bytes:
    step = next(step for step in SYSTEM.steps(config) if step.name == name)
    module = typed(step.module(Latent(config)).eval(), precision)
    path = folder / f"{name}.onnx"
    export_onnx(module, step, path, runtime="tensorrt")
    assert refusals(path) == []
    profile = profile_of(step, Largest(1, side), reference_side=512)
    api = importlib.import_module(API)
    engine: bytes = api.build_from_onnx(
        path, [profile], OPTIONS, name=name, report=lambda line: None
    )
    return engine


@pytest.mark.parametrize(
    ("variant", "name", "precision"),
    [
        ("scratch", "latent_encode", "fp16"),
        ("scratch", "latent_map", "fp32"),
        ("scratch", "latent_map", "fp16"),
        ("scratch", "latent_decode", "fp16"),
    ],
)
def test_engines_build(trt: Any, tmp_path: Path, variant: Any, name: str, precision: str) -> None:
    torch.manual_seed(0)
    assert built(LatentConfig(mapping=variant, **TINY), name, precision, 256, tmp_path)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("variant", "name", "precision"),
    list(
        itertools.product(
            ("quality", "scratch", "patch"), SYSTEM.step_names, ("fp32", "fp16", "bf16")
        )
    ),
)
def test_every_engine_builds(
    trt: Any, tmp_path: Path, variant: Any, name: str, precision: str
) -> None:
    torch.manual_seed(0)
    config = LatentConfig(mapping=variant, **TINY, damage=PRESETS["compact"].damage)
    assert built(config, name, precision, 256, tmp_path)
