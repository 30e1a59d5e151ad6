"""The generator of faces: its layers, its numbers, and its way to a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from released_networks import ReleasedFaces
from rtx import built

from pikfix.cli.main import main
from pikfix.export.onnx import export_onnx
from pikfix.export.parity import check_parity
from pikfix.export.profiles import Range
from pikfix.export.runtimes.onnxruntime import onnx_runner
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.export.runtimes.tensorrt_lint import refusals
from pikfix.systems.base import Case
from pikfix.systems.checkpoint import CheckpointError, load, save_checkpoint
from pikfix.systems.latent.faces.generator import PRESETS, FaceConfig, FaceGenerator, Spade
from pikfix.systems.pikfix.networks import load_checkpoint
from pikfix.systems.registry import system_of

SMALL = FaceConfig("small", width=4, hidden=6)
SYSTEM = system_of("faces")

LAYERS = [(1024, 8), (1024, 8), (1024, 16), (1024, 16), (512, 32), (256, 64), (128, 128), (64, 256)]
"""Channels and sides, from the coarsest, for a face of 256 x 256, as published."""


def generator(config: FaceConfig) -> FaceGenerator:
    torch.manual_seed(0)
    network = FaceGenerator(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_its_layers_are_the_published_ones() -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        network = FaceGenerator(PRESETS["paper"])
        for name, module in network.named_children():
            module.register_forward_hook(
                lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
            )
        for index, block in enumerate(network.blocks):
            block.register_forward_hook(
                lambda _, __, out, i=index: shapes.update({str(i): tuple(out.shape[1:])})
            )
        out = network(torch.zeros(1, 3, 256, 256))
    found = [shapes["entry"], *(shapes[str(i)] for i in range(7))]
    assert found == [(channels, side, side) for channels, side in LAYERS]
    assert out.shape == (1, 3, 256, 256)
    assert [block.shortcut is not None for block in network.blocks] == 3 * [False] + 4 * [True]


def test_it_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in FaceGenerator(config).parameters())
            for name, config in PRESETS.items()
        }
        released = sum(p.numel() for p in ReleasedFaces().parameters())
    assert counts["paper"] == released
    assert round(counts["paper"] / 1e6, 2) == 92.06
    assert counts["compact"] <= 8e6


def convolved(x: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    """A 3 x 3 convolution with a border of zeros, written out."""
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x.shape[1:])) + bias[:, None, None]
    for row in range(3):
        for column in range(3):
            window = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            out += np.einsum("oc,chw->ohw", weight[:, :, row, column], window)
    return out


@pytest.mark.parametrize("norm", ["instance", "running"])
def test_spade_is_its_formula(norm: str) -> None:
    torch.manual_seed(0)
    spade = Spade(5, dataclasses.replace(SMALL, norm=norm)).eval().double()
    if spade.running is not None:
        spade.running.running_mean.normal_()
        spade.running.running_var.uniform_(0.5, 2)
    rng = np.random.default_rng(0)
    x, face = rng.normal(size=(5, 8, 12)), rng.uniform(-1, 1, (3, 16, 24))
    # At half the size a bilinear sample lies between 2 x 2 pixels.
    small = face.reshape(3, 8, 2, 12, 2).mean(axis=(2, 4))
    seen = np.maximum(convolved(small, spade.seen), 0)
    mean, variance = x.mean(axis=(1, 2)), x.var(axis=(1, 2))
    if spade.running is not None:
        mean = spade.running.running_mean.numpy()
        variance = spade.running.running_var.numpy()
    normed = (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    expected = normed * (1 + convolved(seen, spade.scale)) + convolved(seen, spade.shift)
    with torch.no_grad():
        found = spade(torch.from_numpy(x)[None], torch.from_numpy(face)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("norm", ["instance", "running"])
def test_a_face_is_drawn_alike_whatever_else_is_in_its_batch(norm: str) -> None:
    network = generator(dataclasses.replace(SMALL, norm=norm))
    faces = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        together = network(faces)
        apart = torch.cat([network(face[None]) for face in faces])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert float(together.abs().max()) <= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"side": 100}, "side is 100: it must be a multiple of 32"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"norm": "batch"}, "norm is 'batch': one of"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match="unknown configuration fields: depth"):
        FaceConfig.from_dict({**SMALL.to_dict(), "depth": 3})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaceGenerator, Path]]:
    folder = tmp_path_factory.mktemp("faces")
    save_checkpoint(generator(SMALL), folder / "faces.safetensors", system="faces")
    loaded = load(folder / "faces.safetensors")
    (step,) = loaded.steps
    export_onnx(loaded.modules[step.name], step, folder / "m.onnx", runtime="tensorrt")
    yield loaded.model, folder / "m.onnx"


def test_it_passes_the_gate_of_an_export(exported: tuple[FaceGenerator, Path]) -> None:
    network, path = exported
    steps = SYSTEM.steps(network.config)
    figures = check_parity(
        SYSTEM,
        SYSTEM.modules(network, steps),
        steps,
        {steps[0].name: onnx_runner(path)},
        limits={steps[0].name: LIMITS["fp32"]},
        cases=(Case(2, 1, (97, 203), (32, 32)), Case(1, 1, (33, 128), (32, 32))),
    )
    assert figures[steps[0].name]["max_abs"] < 1e-4


def test_tensorrt_builds_it(exported: tuple[FaceGenerator, Path]) -> None:
    _, path = exported
    assert refusals(path) == []
    ranges = Range((1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 128, 128))
    assert len(built(path, {"face_rgb": ranges})) > 10_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "faces.safetensors"
    save_checkpoint(generator(SMALL), path, system="faces")
    return path


def test_it_is_not_taken_for_pikfix(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is of the system faces: give a checkpoint of pik"):
        load_checkpoint(checkpoint)


def test_it_needs_no_ranges(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    assert main(["calibrate", str(checkpoint), "--photos", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("nothing of faces is computed in int8\n")
    assert len(list(checkpoint.parent.iterdir())) == 1
