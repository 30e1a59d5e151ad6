"""`pikfix import`, from the files that others published to checkpoints of this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from released_latent import ReleasedPatch, ReleasedQuality, ReleasedScratch, ReleasedVae
from released_networks import ReleasedDetector, ReleasedFaces, trained
from released_torchvision import ReleasedResNet34, ReleasedVgg

from pikfix.cli.main import main
from pikfix.export import export_checkpoint
from pikfix.export.errors import ExportError
from pikfix.references.backbone import load_backbone
from pikfix.systems.checkpoint import load
from pikfix.systems.damage import released as damage
from pikfix.systems.latent.faces import generator
from pikfix.systems.latent.networks import config as latent_config
from pikfix.systems.pikfix import networks

WIDTHS = (4, 6, 8)
Files = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Writes published files, of networks that are narrower than the published ones."""
    monkeypatch.setattr(damage, "CONFIG", replace(damage.CONFIG, detector_channels=WIDTHS))
    faces = replace(generator.PRESETS["paper"], width=4, hidden=6)
    monkeypatch.setitem(generator.PRESETS, "paper", faces)
    whole = replace(networks.PRESETS["compact"], name="paper", damage=None, backbone_width=4)
    whole = replace(whole, backbone_blocks=(3, 4, 6, 3))
    monkeypatch.setitem(networks.PRESETS, "paper", whole)
    narrow = {"vae_channels": 4, "mapping_channels": 8, "attention_channels": 8}
    latent = replace(latent_config.PRESETS["paper"], **narrow)
    monkeypatch.setitem(latent_config.PRESETS, "paper", latent)
    makers = {
        "FT_Epoch_latest.pt": lambda: {
            "model_state": trained(ReleasedDetector, WIDTHS).state_dict(),
            "optimizer_state": {"param_groups": [{"lr": 1e-4}]},
        },
        "latest_net_G.pth": lambda: trained(ReleasedFaces, 4, 6).state_dict(),
        "vae.pth": lambda: trained(ReleasedVae, 4).state_dict(),
        "quality.pth": lambda: trained(ReleasedQuality, 4, 8).state_dict(),
        "scratch.pth": lambda: trained(ReleasedScratch, 4, 8).state_dict(),
        "patch.pth": lambda: trained(ReleasedPatch, 4, 8).state_dict(),
        "resnet34.pth": lambda: trained(ReleasedResNet34, 4).state_dict(),
        "vgg19.pth": lambda: trained(ReleasedVgg).state_dict(),
    }

    def write(name: str, folder: str = ".", called: str = "") -> Path:
        path = tmp_path / folder / (called or name)
        path.parent.mkdir(exist_ok=True)
        torch.save(makers[name](), path)
        return path

    return write


def test_the_detector_becomes_a_checkpoint_of_the_damage_networks(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "detector.safetensors"
    assert main(["import", str(files("FT_Epoch_latest.pt")), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: damage\n"
    loaded = load(out)
    assert (loaded.system.name, loaded.config.name) == ("damage", "paper")
    (source,) = json.loads(loaded.metadata["imported"])
    assert (source["part"], source["file"]) == ("detector", "FT_Epoch_latest.pt")
    expected = trained(ReleasedDetector, WIDTHS).last[1].weight
    assert torch.equal(loaded.model.detector.output.weight, expected)


@pytest.mark.parametrize(("folder", "side"), [("Setting_9_epoch_100", 256), ("FaceSR_512", 512)])
def test_faces_become_a_checkpoint_of_their_size(
    files: Files, tmp_path: Path, folder: str, side: int
) -> None:
    out = tmp_path / "faces.safetensors"
    assert main(["import", str(files("latest_net_G.pth", folder)), "-o", str(out)]) == 0
    loaded = load(out)
    assert (loaded.system.name, loaded.config.side, loaded.config.norm) == (
        "faces",
        side,
        "running",
    )
    face = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = trained(ReleasedFaces, 4, 6)(face)
        torch.testing.assert_close(loaded.model(face), expected, atol=1e-5, rtol=1e-4)


def test_a_backbone_is_a_start_for_training_and_nothing_to_serve(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "start.safetensors"
    assert main(["import", str(files("resnet34.pth")), "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["system"] == "pikfix"
    assert said["untrained"] == "everything but similarity's backbone"
    assert load_backbone(out).kind == "resnet"
    expected = trained(ReleasedResNet34, 4).layer3[2].bn1.running_var
    assert torch.equal(load(out).model.similarity.backbone.layer3[2].bn1.running_var, expected)
    with pytest.raises(ExportError, match="is untrained, and would restore nothing"):
        export_checkpoint(out, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_vgg19_becomes_a_file_of_features(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vgg19.safetensors"
    assert main(["import", str(files("vgg19.pth")), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: vgg19\n"
    assert load_backbone(out).kind == "vgg19"


LATENT = [
    ("mapping_quality", "quality.pth", "VAE_B_quality", "quality"),
    ("mapping_scratch", "scratch.pth", "VAE_B_scratch", "scratch"),
    ("mapping_Patch_Attention", "patch.pth", "VAE_B_scratch", "patch"),
]


@pytest.mark.parametrize(("folder", "name", "clean", "variant"), LATENT)
def test_both_vaes_and_a_mapping_become_one_checkpoint(
    files: Files, tmp_path: Path, folder: str, name: str, clean: str, variant: str
) -> None:
    out = tmp_path / "latent.safetensors"
    given = [
        files(name, folder, "latest_net_mapping_net.pth"),
        files("vae.pth", clean, "latest_net_G.pth"),
        files("vae.pth", "VAE_A_quality", "latest_net_G.pth"),
        files("FT_Epoch_latest.pt"),
    ]
    # The names that are told apart by their folder are not told apart by the order.
    state = torch.load(given[1], weights_only=True)
    state["encoder.1.bias"] += 1
    torch.save(state, given[1])
    assert main(["import", *map(str, given), "-o", str(out)]) == 0
    loaded = load(out)
    assert (loaded.system.name, loaded.config.mapping) == ("latent", variant)
    assert loaded.config.damage == damage.CONFIG
    old, clean_vae = loaded.model.vae_old, loaded.model.vae_clean
    assert torch.equal(clean_vae.encoder.stem.bias, old.encoder.stem.bias + 1)
    sources = json.loads(loaded.metadata["imported"])
    assert [s["part"] for s in sources] == ["mapping", "vae_clean", "vae_old", "damage"]
    assert main(["import", *map(str, given[:3]), "-o", str(out)]) == 0
    assert load(out).config.damage is None


def test_what_lacks_or_does_not_belong_together_is_named(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    mapping = str(files("scratch.pth", "mapping_scratch"))
    old = str(files("vae.pth", "VAE_A_quality"))
    quality, nameless = str(files("vae.pth", "VAE_B_quality")), str(files("vae.pth", "x"))
    said = refused([mapping, old], capsys, out)
    assert "latent needs Wan et al.'s VAE_B as well: give all its files at once" in said
    assert "mapping_quality or Wan et al.'s mapping_scratch or" in refused([old], capsys, out)
    said = refused([mapping, old, quality], capsys, out)
    assert "was not trained with VAE_B_quality" in said
    said = refused([mapping, old, nameless], capsys, out)
    assert "let the name of the file or of its folder have VAE_A or VAE_B in it" in said


def refused(words: list[str], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    assert main(["import", *words, "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pikfix: ")
    assert said.err.count("\n") == 1
    assert before is None or sorted(out.parent.iterdir()) == before
    return said.err


def test_what_cannot_be_imported_leaves_nothing_behind(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("mine")
    detector, faces = str(files("FT_Epoch_latest.pt")), str(files("latest_net_G.pth"))
    assert "no such file" in refused([str(tmp_path / "no.pth")], capsys, out)
    said = refused([detector, faces], capsys, out)
    assert "is of damage" in said
    assert "is of faces): import them one by one" in said
    copy = Path(detector).with_name("copy.pt")
    copy.write_bytes(Path(detector).read_bytes())
    assert "both are" in refused([detector, str(copy)], capsys, out)
    cut = Path(detector)
    cut.write_bytes(cut.read_bytes()[:-900])
    assert "copy it again" in refused([detector], capsys, out)
    assert out.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = files("FT_Epoch_latest.pt")
    assert "there is no folder" in refused([str(detector)], capsys, tmp_path / "no" / "m.st")
    assert "is a folder" in refused([str(detector)], capsys, tmp_path)
    content = detector.read_bytes()
    assert "would be written over" in refused([str(detector)], capsys, detector)
    assert detector.read_bytes() == content
