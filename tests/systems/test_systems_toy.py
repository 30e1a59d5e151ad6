"""A system that nothing but its own folder and the registry knows is exported and served."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient import grpc

from pikfix.evaluation.evaluator import evaluate
from pikfix.export import export_checkpoint
from pikfix.export.calibration import measure_ranges, samples
from pikfix.serving.server import start_server
from pikfix.systems import registry
from pikfix.systems.base import TensorSpec
from pikfix.systems.checkpoint import Loaded, load, save_checkpoint
from pikfix.systems.registry import system_of
from pikfix.training.loop import Budget
from pikfix.training.run import RunOptions
from pikfix.training.stage_run import StageConfig, train_stage


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of the toy system, which is registered as long as the test runs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(registry.SYSTEMS, "toy", "toy_system")
    system = system_of("toy")
    torch.manual_seed(0)
    path = tmp_path / "toy.safetensors"
    save_checkpoint(system.build(system.config_type(channels=3)), path, system="toy")
    yield path
    sys.modules.pop("toy_system", None)


def expected(loaded: Loaded, photo: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        bright = loaded.model.brighten(torch.from_numpy(photo)).numpy()  # type: ignore[operator]
    return bright - bright.mean(axis=(2, 3), keepdims=True)


def test_a_checkpoint_names_its_system(toy: Path) -> None:
    loaded = load(toy)
    assert (loaded.system.name, loaded.config.channels) == ("toy", 3)
    assert [step.name for step in loaded.steps] == ["brighten", "level"]


def test_ranges_are_measured_in_every_step(toy: Path) -> None:
    loaded = load(toy)
    found = measure_ranges(loaded.system, loaded.model, samples(loaded.system))
    assert set(found) == {"brighten", "level"}
    assert {name: tuple(v.shape) for name, v in found["brighten"].items()} == {
        "0": (2, 1),
        "2": (2, 3),
    }


@pytest.mark.serving
def test_it_is_exported_and_served_in_tiles(toy: Path, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    manifest = export_checkpoint(toy, repository)
    assert manifest.checkpoint["system"] == "toy"
    assert set(manifest.models) == {"brighten", "level"}
    config = repository / "brighten" / "config.pbtxt"
    text = config.read_text()
    assert '"1048576"' in text
    config.write_text(text.replace('"1048576"', '"10000"'))  # tiles of 100 x 100
    photo = np.random.default_rng(1).uniform(-1, 1, (2, 1, 150, 130)).astype(np.float32)
    given = grpc.InferInput("photo_l", list(photo.shape), "FP32")
    given.set_data_from_numpy(photo)
    with start_server(repository) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("toy", [given]).as_numpy("level_l")
    np.testing.assert_allclose(answer, expected(load(toy), photo), atol=1e-5)


def test_its_stage_is_trained_and_what_it_learned_is_measured(toy: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(2)
    for index in range(3):
        pixels = rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")

    def change(checkpoint: Path) -> float:
        loaded = load(checkpoint)
        (protocol,) = loaded.system.imported_protocols().values()
        found = evaluate(loaded.model, sorted(photos.iterdir()), protocol)
        return found.means["model"]["change"]

    plan = StageConfig("toy", "idle", {"name": "toy", "channels": 3}, crop=64, side=64)
    plan = dataclasses.replace(plan, optimizer=system_of("toy").stage("idle").optimizer)
    options = RunOptions(photos, tmp_path / "run", init=((None, toy),), workers=0)
    options = dataclasses.replace(options, budget=Budget(steps=10))
    result = train_stage(plan, options)
    assert (result.step, result.reason) == (10, "finished")
    assert change(result.model) < 0.9 * change(toy)


def test_a_stage_that_is_not_there_is_named(toy: Path) -> None:
    with pytest.raises(ValueError, match="toy has no stage 'more': choose from idle"):
        system_of("toy").stage("more")
    with pytest.raises(ValueError, match="toy needs a stage: choose from idle"):
        system_of("toy").stage(None)


def test_a_system_that_is_not_there_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.SYSTEMS, "toy")
    names = ", ".join(registry.SYSTEMS)
    with pytest.raises(ValueError, match=f"no system 'toy'; this version has: {names}; update"):
        load(toy)


def test_symbols_have_sizes() -> None:
    tensor = TensorSpec("warped", (6, "h/4", "w/8"))
    assert tensor.dims == (6, -1, -1)
    assert tensor.sized({"h": 96, "w": 64}) == (6, 24, 8)
    with pytest.raises(KeyError):
        tensor.sized({"h": 96})
