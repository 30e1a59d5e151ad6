"""The stages of latent translation: samples, terms, and a few steps with tiny networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from training_runs import assert_same, rows_of

from pikfix.cli.main import main
from pikfix.systems.checkpoint import load
from pikfix.systems.latent import losses
from pikfix.systems.latent.networks import LatentConfig
from pikfix.systems.latent.samples import LatentBatches, aged, clean
from pikfix.systems.registry import system_of
from pikfix.training.errors import TrainingError
from pikfix.training.loop import Budget
from pikfix.training.photo_store import PhotoStore
from pikfix.training.run import RunOptions
from pikfix.training.stage_run import StageConfig, train_stage

TINY = LatentConfig(
    name="tiny",
    vae_channels=4,
    vae_blocks=1,
    mapping_channels=8,
    attention_channels=4,
    context_blocks=1,
    trunk_blocks=1,
)


def picture(seed: int, side: int = 72) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("photos")
    found = {}
    for kind, seeds in (("photos", range(4)), ("old", range(10, 13)), ("val", range(20, 22))):
        found[kind] = root / kind
        found[kind].mkdir()
        for seed in seeds:
            pixels = picture(seed)
            if kind == "old":
                pixels = pixels[..., 0]
            Image.fromarray(pixels).save(found[kind] / f"{seed}.png")
    return found


def plan(stage: str, **network: Any) -> StageConfig:
    config = dataclasses.replace(TINY, **network)
    optimizer = dataclasses.replace(
        system_of("latent").stage(stage).optimizer,
        batch=2,
        warmup=1,
        learning_rate=5e-3,
        schedule="constant",  # so that two parts are one whole
        ema=0.5,
    )
    return StageConfig("latent", stage, config.to_dict(), crop=64, side=64, optimizer=optimizer)


def run(
    folders: dict[str, Path], folder: Path, stage: str, steps: int = 3, **more: Any
) -> dict[str, float]:
    network = more.pop("network", {})
    options = RunOptions(
        folders["photos"],
        folder,
        workers=0,
        budget=Budget(steps=steps, log_steps=1),
        **{"validation": folders["val"], **more},
    )
    result = train_stage(plan(stage, **network), options)
    assert (result.step, result.reason) == (steps, "finished")
    row = rows_of(folder / "training.csv")[-1]
    return {name: float(value) for name, value in row.items() if value}


def test_a_sample_has_holes_where_it_was_damaged() -> None:
    window = picture(1, 64).astype(np.float32) / 255
    kinds = set()
    for seed in range(40):
        sample = aged(window, np.random.default_rng(seed))
        assert sample.clean is window
        assert sample.aged.dtype == np.float32
        assert 0 <= sample.aged.min() <= sample.aged.max() <= 1
        assert set(np.unique(sample.hole)) <= {0, 1}
        inside = sample.aged[sample.hole > 0]
        if inside.size:
            kinds.add("white" if (inside == 1).all() else "other")
        else:
            kinds.add("none")
    assert kinds == {"white", "other", "none"}
    never = [aged(window, np.random.default_rng(seed), damaged=0.0).hole for seed in range(20)]
    assert not np.any(never)


def test_every_second_sample_is_a_real_photo_and_steps_repeat() -> None:
    store = PhotoStore.of([picture(seed) for seed in range(3)], ["a", "b", "c"], [])
    old = PhotoStore.of([np.full((72, 72, 3), 7, np.uint8)], ["o"], [])
    batches = LatentBatches(store, aged, old, crop=64, batch=4, seed=5)
    batch = batches[3]
    assert batch["real"].tolist() == [0, 255, 0, 255]
    assert (batch["clean"][1::2] == 7).all()
    assert torch.equal(batch["clean"][1::2], batch["aged"][1::2])
    assert not torch.equal(batch["clean"][0], batch["aged"][0])
    again = LatentBatches(store, aged, old, crop=64, batch=2, seed=5, rank=1)[3]
    for name, values in again.items():
        assert torch.equal(values, batch[name][2:]), name
    plain = LatentBatches(store, clean, crop=64, batch=2, seed=5)[0]
    assert torch.equal(plain["clean"], plain["aged"])


def test_the_terms_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> list[list[torch.Tensor]]:
        sizes = ((2, 3, 8, 8), (2, 5, 4, 4), (2, 1, 4, 4))
        return [[torch.randn(size, generator=generator) for size in sizes] for _ in range(2)]

    real, fake = drawn(), drawn()
    wanted = sum(((scale[-1] - 1) ** 2).mean() for scale in fake)
    torch.testing.assert_close(losses.adversarial(fake), wanted)
    wanted = 0.5 * sum(
        ((r[-1] - 1) ** 2).mean() + (f[-1] ** 2).mean() for r, f in zip(real, fake, strict=True)
    )
    torch.testing.assert_close(losses.told_apart(real, fake), wanted)
    wanted = sum((real[s][i] - fake[s][i]).abs().mean() for s in (0, 1) for i in (0, 1)) / 2
    torch.testing.assert_close(losses.matched(real, fake), wanted)
    ours, truth = drawn()[0], drawn()[0]
    wanted = sum(
        w * (a - b).abs().mean() for w, a, b in zip((1 / 8, 1 / 4, 1), ours, truth, strict=True)
    )
    torch.testing.assert_close(losses.perceptual(ours, truth, relative=False), wanted)
    values = torch.arange(6.0).reshape(3, 2)
    assert losses.of_kind(values, torch.tensor([1.0, 0, 1])) == (0.5 + 4.5) / 2
    assert losses.of_kind(values, torch.zeros(3)) == 0


def test_the_vae_of_clean_photos_learns_them(folders: dict[str, Path], tmp_path: Path) -> None:
    first = run(folders, tmp_path / "short", "vae_clean", steps=1)
    run(folders, tmp_path / "run", "vae_clean", steps=24)
    assert set(first) >= {"kl", "values", "adversarial", "matched", "discriminator"}
    assert "perceptual" not in first
    worse, better = (rows_of(tmp_path / n / "validation.csv")[-1] for n in ("short", "run"))
    assert float(better["psnr"]) > float(worse["psnr"]) + 0.5
    assert float(better["latent_square"]) > 0
    before, after = (load(tmp_path / n / "model.safetensors").model for n in ("short", "run"))
    torch.testing.assert_close(before.vae_old.state_dict(), after.vae_old.state_dict())


def test_old_photos_are_aligned_with_synthetic_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with_old = run(folders, tmp_path / "old", "vae_old", old_photos=folders["old"])
    assert with_old["aligned"] > 0
    assert with_old["latent_discriminator"] > 0
    without = run(folders, tmp_path / "synthetic", "vae_old")
    assert "aligned" not in without
    too_small = plan("vae_old")
    optimizer = dataclasses.replace(too_small.optimizer, batch=1)
    options = RunOptions(folders["photos"], tmp_path / "one", old_photos=folders["old"], workers=0)
    with pytest.raises(TrainingError, match="give --batch 2 or more"):
        train_stage(dataclasses.replace(too_small, optimizer=optimizer), options)


@pytest.mark.parametrize("variant", ["scratch", "quality"])
def test_a_mapping_is_trained_between_vaes_that_stay(
    folders: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    network = {"mapping": variant}
    vaes = {}
    for stage in ("vae_old", "vae_clean"):
        run(folders, tmp_path / stage, stage, steps=1, network=network)
        vaes[stage] = tmp_path / stage / "model.safetensors"
    with pytest.raises(TrainingError, match="give --init vae_old=CHECKPOINT"):
        run(folders, tmp_path / "none", "mapping", network=network)
    init = tuple(vaes.items())
    shown = run(folders, tmp_path / "run", "mapping", steps=3, init=init, network=network)
    assert set(shown) >= {"latents", "adversarial", "matched", "discriminator"}
    model = load(tmp_path / "run" / "model.safetensors").model
    for stage, path in vaes.items():
        kept = load(path).model.get_submodule(stage).state_dict()
        torch.testing.assert_close(model.get_submodule(stage).state_dict(), kept)
    validated = rows_of(tmp_path / "run" / "validation.csv")[-1]
    assert set(validated) >= {"psnr", "input_psnr", "latent_error"}
    if variant == "quality":
        return
    # The same in two parts, the second resumed.
    run(folders, tmp_path / "parts", "mapping", steps=1, init=init, network=network)
    run(folders, tmp_path / "parts", "mapping", steps=3, init=init, network=network, resume=True)
    assert_same(tmp_path / "run", tmp_path / "parts")


def test_the_command_trains_a_stage_and_refuses_what_it_has_no_use_for(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        word
        for name, value in TINY.to_dict().items()
        if isinstance(value, int)
        for word in ("--ablation", f"{name}={value}")
    ]
    words = ["train", "--system", "latent", "--photos", str(folders["photos"]), *small]
    words += ["--batch", "2", "--crop", "64", "--workers", "0", "--steps", "1"]
    out = tmp_path / "run"
    assert main([*words, "--stage", "vae_clean", "-o", str(out)]) == 0
    assert load(out / "model.safetensors").system.name == "latent"
    capsys.readouterr()
    old = ["--old-photos", str(folders["old"])]
    assert main([*words, *old, "--stage", "mapping", "-o", str(tmp_path / "no")]) == 2
    assert "latent has no use for --old-photos in mapping" in capsys.readouterr().err
    assert main([*words, "--stage", "colors", "-o", str(tmp_path / "no")]) == 2
    assert "choose from vae_old, vae_clean, mapping" in capsys.readouterr().err


def test_the_published_features_are_taken_where_they_are_given(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from pikfix.layers.vgg import VGG19_TAPS, Vgg19Features

    torch.manual_seed(0)
    net = Vgg19Features()
    torch.save(net.state_dict(), tmp_path / "vgg19.pth")
    features = tmp_path / "vgg19.pth"
    shown = run(
        folders, tmp_path / "run", "vae_clean", steps=1, feature_weights=features, validation=None
    )
    assert shown["perceptual"] > 0
    # Each tap is what follows the first convolution of its size.
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        whole = net.features((x - net.mean) / net.std)
        first = F.relu(net.features[0]((x - net.mean) / net.std))
        taken = Vgg19Features(("relu1_1", "relu5_1"))
        taken.load_state_dict(
            {k: v for k, v in net.state_dict().items() if k in taken.state_dict()}
        )
        found = taken(x)
    torch.testing.assert_close(found[0], first)
    assert found[1].shape[1:] == (512, 2, 2)
    assert whole.shape[1:] == (512, 2, 2)
    assert [VGG19_TAPS[f"relu{i}_1"] for i in range(1, 6)] == [1, 6, 11, 20, 29]
