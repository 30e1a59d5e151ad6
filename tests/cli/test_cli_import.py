"""`pikfix import`, from the files that others published to checkpoints of this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from released_networks import ReleasedDetector, ReleasedFaces, trained
from released_torchvision import ReleasedResNet34, ReleasedVgg

from pikfix.cli.main import main
from pikfix.export import export_checkpoint
from pikfix.export.errors import ExportError
from pikfix.references.backbone import load_backbone
from pikfix.systems.checkpoint import load
from pikfix.systems.damage import released as damage
from pikfix.systems.latent.faces import generator
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
    makers = {
        "FT_Epoch_latest.pt": lambda: {
            "model_state": trained(ReleasedDetector, WIDTHS).state_dict(),
            "optimizer_state": {"param_groups": [{"lr": 1e-4}]},
        },
        "latest_net_G.pth": lambda: trained(ReleasedFaces, 4, 6).state_dict(),
        "resnet34.pth": lambda: trained(ReleasedResNet34, 4).state_dict(),
        "vgg19.pth": lambda: trained(ReleasedVgg).state_dict(),
    }

    def write(name: str, folder: str = ".") -> Path:
        path = tmp_path / folder / name
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
