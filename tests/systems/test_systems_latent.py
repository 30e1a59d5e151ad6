"""The system latent, exported and on a real server, with networks that are tiny and untrained."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient import grpc

from pikfix.client import InvalidOptionsError, PikFixClient
from pikfix.export import ExportError, Manifest, export_checkpoint
from pikfix.photos import bucket_shape, photo_luminance
from pikfix.serving.health import canary
from pikfix.serving.server import start_server
from pikfix.systems.chain import run_chain
from pikfix.systems.checkpoint import load, save_checkpoint
from pikfix.systems.damage.networks import DamageConfig
from pikfix.systems.latent.networks import Latent, LatentConfig

TINY = LatentConfig(
    name="tiny",
    damage=DamageConfig(detector_channels=(4, 4)),
    vae_channels=4,
    vae_blocks=1,
    mapping_channels=8,
    attention_channels=4,
    context_blocks=1,
    trunk_blocks=1,
    limit=128,  # so that most photos here are larger
)

STEPS = ["latent_damage", "latent_encode", "latent_map", "latent_decode"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("latent") / "tiny.safetensors"
    save_checkpoint(Latent(TINY), path, system="latent")
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[Path, Manifest]:
    repository = checkpoint.parent / "repository"
    return repository, export_checkpoint(checkpoint, repository)


@pytest.fixture(scope="module")
def server(exported: tuple[Path, Manifest]) -> Iterator[str]:
    with start_server(exported[0]) as running:
        yield running.grpc_url


def test_every_network_passes_the_gate(exported: tuple[Path, Manifest]) -> None:
    repository, manifest = exported
    assert manifest.checkpoint["system"] == "latent"
    assert list(manifest.models) == STEPS
    for entry in manifest.models.values():
        assert entry["parity"]["max_abs"] < 1e-3
    assert {path.name for path in repository.iterdir() if path.is_dir()} == {
        *manifest.models,
        "decode_photo",
        "encode_photo",
        "latent",
        "latent_photo",
    }


def photo(height: int, width: int) -> np.ndarray[Any, Any]:
    """Smooth colours with some grain."""
    rng = np.random.default_rng(height)
    small = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def in_process(
    checkpoint: Path, pixels: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """What the steps in PyTorch give for a photo that is reflected as the server does it."""
    height, width = pixels.shape[:2]
    tall, wide = bucket_shape(height, width)
    edges = ((0, tall - height), (0, wide - width))
    rgb = pixels.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    known = {
        "photo_rgb": np.pad(rgb, ((0, 0), *edges), "reflect"),
        "photo_l": np.pad(photo_luminance(pixels), edges, "reflect")[None],
        "marked_mask": np.pad(mask.astype(np.float32) / 255, edges, "reflect")[None],
    }
    loaded = load(checkpoint)
    found = {name: torch.from_numpy(value)[None] for name, value in known.items()}
    for _, _, outputs in run_chain(loaded.steps, loaded.modules, found):
        found.update(outputs)
    return {name: value[0, :, :height, :width].numpy() for name, value in found.items()}


@pytest.mark.serving
@pytest.mark.parametrize(("height", "width"), [(33, 517), (301, 200), (120, 90)])
def test_what_is_served_is_what_the_networks_give(
    server: str, checkpoint: Path, height: int, width: int
) -> None:
    pixels = photo(height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[5:20, 10:25] = 255
    with PikFixClient(server) as client:
        restored = client.restore(pixels, system="latent", mask=mask, force_photo=True)
        half = client.restore(pixels, system="latent", mask=mask, force_photo=True, strength=0.5)
    expected = in_process(checkpoint, pixels, mask)
    wanted = (expected["restored_rgb"].transpose(1, 2, 0) + 1) * 127.5
    given = np.asarray(restored.image).astype(float)
    assert given.shape == pixels.shape
    assert np.abs(given - wanted).max() < 0.51  # half a level is rounding
    mixed = (wanted + pixels) / 2
    assert np.abs(np.asarray(half.image) - mixed).max() < 0.51
    report = restored.report
    assert (report.system, report.faces, report.kept_colors) == ("latent", 0, True)
    assert report.damaged_share == round(float((expected["damage_mask"] > 0).mean()), 4)
    assert report.damaged_share >= (mask > 0).mean() - 1e-4
    assert report.model_version.startswith("tiny-")
    assert report.warnings == ()


@pytest.mark.serving
def test_a_grey_photo_stays_grey_and_a_page_as_it_is(server: str) -> None:
    grey = photo(96, 128)[..., 0].copy()
    page = np.full((300, 400), 255, np.uint8)
    for row in range(40, 260, 20):
        page[row : row + 8, 40:360:3] = 0
    with PikFixClient(server) as client:
        for pixels in (grey, np.repeat(grey[..., None], 3, axis=2)):
            restored = client.restore(pixels, system="latent", force_photo=True)
            assert (restored.image.mode, restored.image.size) == ("L", (128, 96))
            assert not restored.report.kept_colors
        left = client.restore(page, system="latent")
        with pytest.raises(InvalidOptionsError, match="the mask is 50 x 60, the photo 128 x 96"):
            client.restore(grey, system="latent", mask=page[:60, :50])
        with pytest.raises(InvalidOptionsError, match="color_strength is of colours"):
            client.restore(grey, system="latent", color_strength=0.5)
    assert left.report.photo.content == "graphic"
    assert np.array_equal(np.asarray(left.image), page)


@pytest.mark.serving
def test_tensors_and_the_canary_are_answered(server: str, checkpoint: Path) -> None:
    assert canary(server).healthy
    rng = np.random.default_rng(3)
    rgb = rng.uniform(-1, 1, (2, 3, 52, 71)).astype(np.float32)
    mask = (rng.random((2, 1, 52, 71)) > 0.9).astype(np.float32)
    inputs = []
    for name, values in (("photo_rgb", rgb), ("damage_mask", mask)):
        inputs.append(grpc.InferInput(name, list(values.shape), "FP32"))
        inputs[-1].set_data_from_numpy(values)
    with grpc.InferenceServerClient(server) as client:
        answer = client.infer("latent", inputs).as_numpy("restored_rgb")
    with torch.no_grad():
        expected = load(checkpoint).model(torch.from_numpy(rgb), torch.from_numpy(mask))
    np.testing.assert_allclose(answer, expected.numpy(), atol=1e-4)


def test_a_large_photo_has_no_seams(checkpoint: Path) -> None:
    """The change of a large photo is that of the small one, spread: nowhere does it jump."""
    model = load(checkpoint).model
    rgb = torch.from_numpy(photo(400, 640).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    mask = torch.zeros(1, 1, 400, 640)
    with torch.no_grad():
        change = model(rgb, mask) - rgb
        painted, hole = model.size.painted(rgb, mask)  # type: ignore[union-attr, operator]
        mapped = model.mapping(model.vae_old.encoder(painted), hole)  # type: ignore[union-attr, operator]
        small = model.vae_clean.decoder(mapped) - painted  # type: ignore[union-attr, operator]
    assert small.shape[-2:] == (80, 128)
    inside = (change + rgb).abs() < 0.999  # clipping bends the change
    for dim in (-1, -2):
        steps = change.diff(dim=dim).abs()
        pairs = inside.narrow(dim, 0, inside.shape[dim] - 1) & inside.narrow(
            dim, 1, inside.shape[dim] - 1
        )
        assert (steps * pairs).max() <= small.diff(dim=dim).abs().max() / 5 + 1e-4


def test_two_systems_share_a_repository(
    exported: tuple[Path, Manifest], checkpoint: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "both"
    other = {"checkpoint": {"system": "pikfix", "preset": "compact", "sha256": "ab"}}
    place = {"target": "embedded", "device": "cpu", "created": "", "runtime": "onnxruntime"}
    manifest = {**place, **other, "precision": "fp32", "versions": {}, "models": {"tone": {}}}
    repository.mkdir()
    (repository / "manifest.json").write_text(json.dumps(manifest))
    written = export_checkpoint(checkpoint, repository, runtime="pytorch")
    assert list(written.models) == STEPS
    said = json.loads((repository / "manifest.json").read_text())
    assert said["others"]["pikfix"]["models"] == {"tone": {}}
    again = export_checkpoint(checkpoint, repository, runtime="pytorch")
    assert set(again.others) == {"pikfix"}
    manifest["target"] = "ngc"
    (repository / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="holds pikfix for target ngc and device cpu: export"):
        export_checkpoint(checkpoint, repository, runtime="pytorch")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_forms_of_the_networks_pass_the_gate(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    """PyTorch's own, with the attention as a python step on the fused operator."""
    said: list[str] = []
    manifest = export_checkpoint(
        checkpoint,
        tmp_path / "repository",
        runtime="pytorch",
        precision=precision,
        similarity="kernel" if precision == "fp32" else "runtime",
        progress=said.append,
    )
    kernel = manifest.models["latent_map"]["file"] == "checkpoint.safetensors"
    assert kernel == (precision == "fp32")
    step = tmp_path / "repository" / "latent_map" / "1" / "model.py"
    assert step.exists() == kernel
    # Rounding shows where it is wanted, and nowhere else.
    error = manifest.models["latent_encode"]["parity"]["max_abs"]
    assert (error > 1e-4) == (precision == "bf16")


def test_a_result_is_the_file_that_was_asked_for(server: str) -> None:
    file = io.BytesIO()
    Image.fromarray(photo(64, 96)).save(file, "TIFF")
    with PikFixClient(server) as client:
        restored = client.restore(file.getvalue(), system="latent", depth=16, force_photo=True)
    assert restored.report.result.format == "tiff"
