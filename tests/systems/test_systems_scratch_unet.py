"""The published scratch detector: its layers, its numbers, and its way to a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from released_networks import ReleasedDetector
from rtx import built
from torch import nn

from pikfix.export.onnx import export_onnx
from pikfix.export.parity import check_parity
from pikfix.export.profiles import Range
from pikfix.export.runtimes.onnxruntime import onnx_runner
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.export.runtimes.tensorrt_lint import refusals
from pikfix.layers.color import rgb_to_lab
from pikfix.systems.base import Case
from pikfix.systems.checkpoint import load, save_checkpoint
from pikfix.systems.damage import SYSTEM
from pikfix.systems.damage.networks import PRESETS, Damage, DamageConfig
from pikfix.systems.damage.scratch_unet import BlurPool, ScratchUNet

SMALL = DamageConfig("small", (4, 6, 8), limit=64, detector="scratch_unet")

LAYERS = [
    ("entry", 64, 256),
    *((f"encoder.{i}", 128 << i, 128 >> i) for i in range(4)),
    *((f"decoder.{i}", 512 >> i, 32 << i) for i in range(4)),
    ("output", 1, 256),
]
"""Channels and side of what each level gives for a photo of 256 x 256, as published."""


def damage(config: DamageConfig) -> Damage:
    torch.manual_seed(0)
    return Damage(config).eval()


def test_its_layers_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = ScratchUNet(PRESETS["paper"].detector_channels)
    shapes = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    network(torch.zeros(1, 1, 256, 256, device="meta"))
    assert [(name, *shapes[name]) for name, _, _ in LAYERS] == [
        (name, channels, side, side) for name, channels, side in LAYERS
    ]
    assert network.side_multiple == 16
    assert network.entry.kernel_size == (7, 7)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert {c.padding_mode for c in convolutions} == {"reflect"}
    assert len([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]) == 20


def test_it_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in ScratchUNet(PRESETS["paper"].detector_channels).parameters())
        released = sum(p.numel() for p in ReleasedDetector().parameters())
    assert count == released
    assert round(count / 1e6, 1) == 37.6


def test_half_the_size_is_the_binomial_filters() -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 8))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = padded[:, :-2] / 4 + padded[:, 1:-1] / 2 + padded[:, 2:] / 4
    both = rows[..., :-2] / 4 + rows[..., 1:-1] / 2 + rows[..., 2:] / 4
    given = BlurPool(2).double()(torch.from_numpy(x)[None])[0]
    np.testing.assert_allclose(given.numpy(), both[:, ::2, ::2], atol=1e-12)


def test_it_sees_the_grey_of_srgb() -> None:
    """The published weights know that, and not the lightness of CIELAB."""
    network, seen = ScratchUNet((4, 6)).eval(), []
    network.entry.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    grey = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    network(rgb_to_lab(grey.expand(1, 3, 16, 16))[:, :1])
    torch.testing.assert_close(seen[0], 2 * grey - 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (33, 51), (17, 400)])
def test_any_size_keeps_its_size(size: tuple[int, int]) -> None:
    photo = torch.rand(2, 1, *size) * 2 - 1
    with torch.no_grad():
        filled, mask = damage(SMALL)(photo)
    assert filled.shape == mask.shape == photo.shape
    assert torch.isfinite(filled).all()


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    network = damage(SMALL)
    save_checkpoint(network, tmp_path / "m.safetensors", system="damage")
    loaded = load(tmp_path / "m.safetensors")
    assert isinstance(loaded.model.detector, ScratchUNet)
    photo = torch.rand(1, 1, 40, 50) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(photo), network(photo), atol=0, rtol=0)


def test_older_checkpoints_have_the_small_one() -> None:
    values = {k: v for k, v in DamageConfig(name="compact").to_dict().items() if k != "detector"}
    assert DamageConfig.from_dict(values) == PRESETS["compact"]
    with pytest.raises(ValueError, match="detector is 'unet': one of"):
        DamageConfig(detector="unet")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Damage, Path]]:
    network = damage(SMALL)
    nn.init.normal_(network.detector.output.weight, std=0.5)
    path = tmp_path_factory.mktemp("scratch_unet") / "damage.onnx"
    (step,) = SYSTEM.steps(SMALL)
    export_onnx(step.module(network).eval(), step, path, runtime="tensorrt")
    yield network, path


def test_it_passes_the_gate_of_an_export(exported: tuple[Damage, Path]) -> None:
    network, path = exported
    steps = SYSTEM.steps(SMALL)
    figures = check_parity(
        SYSTEM,
        SYSTEM.modules(network, steps),
        steps,
        {"damage": onnx_runner(path)},
        limits={"damage": LIMITS["fp32"]},
        cases=(Case(2, 1, (97, 203), (32, 32)), Case(1, 1, (31, 700), (32, 32))),
    )
    assert figures["damage"]["max_abs"] < 1e-4


def test_tensorrt_builds_it(exported: tuple[Damage, Path]) -> None:
    _, path = exported
    assert refusals(path) == []
    ranges = Range((1, 1, 16, 16), (1, 1, 64, 64), (1, 1, 96, 200))
    assert len(built(path, {"photo_l": ranges})) > 10_000
