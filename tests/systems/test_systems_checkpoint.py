from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pikfix.systems.checkpoint import CheckpointError, read_metadata, save_checkpoint
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint


def contents(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_round_trip(tiny: PikFix, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(tiny, path, {"steps": "7"})
    loaded = load_checkpoint(path)
    assert loaded.config == tiny.config
    assert not loaded.training
    assert read_metadata(path)["steps"] == "7"
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_half_precision_halves_the_file(tiny: PikFix, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_checkpoint(tiny, full)
    save_checkpoint(tiny, half, dtype=torch.float16)
    assert half.stat().st_size < 0.75 * full.stat().st_size
    weight = load_checkpoint(half).colorization.stem.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, tiny.colorization.stem.weight, atol=1e-3, rtol=1e-3)


def test_a_failed_write_leaves_the_previous_file(
    tiny: PikFix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(tiny, path)
    before = path.read_bytes()

    def disk_full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pikfix.systems.checkpoint.save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tiny, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def broken(kind: str, tiny: PikFix, path: Path) -> None:
    save_checkpoint(tiny, path)
    metadata, tensors = contents(path)
    if kind == "missing file":
        path.unlink()
        return
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
        return
    if kind == "empty":
        path.write_bytes(b"")
        return
    if kind == "text":
        path.write_text("not a checkpoint")
        return
    if kind == "other format":
        metadata = {"format": "pt"}
    elif kind == "newer version":
        metadata["format_version"] = "2"
    elif kind == "missing key":
        del tensors["colorization.stem.weight"]
    elif kind == "unknown key":
        tensors["extra"] = torch.zeros(1)
    elif kind == "other preset":
        config = json.loads(metadata["config"])
        config["stem_channels"] *= 2
        metadata["config"] = json.dumps(config)
    elif kind == "unknown field":
        metadata["config"] = json.dumps({"depth": 3})
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing file", "no such file"),
        ("truncated", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
        ("text", "not a whole safetensors file"),
        ("other format", "not a pikfix checkpoint"),
        ("newer version", "update pikfix"),
        ("missing key", "lacks colorization.stem.weight"),
        ("unknown key", "unknown extra"),
        ("other preset", "does not fit its own configuration"),
        ("unknown field", "depth"),
    ],
)
def test_unusable_checkpoints_say_what_is_wrong(
    tiny: PikFix, tmp_path: Path, kind: str, says: str
) -> None:
    path = tmp_path / "broken.safetensors"
    broken(kind, tiny, path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert says in str(error.value)
    assert "broken.safetensors" in str(error.value)
    assert "\n" not in str(error.value)
