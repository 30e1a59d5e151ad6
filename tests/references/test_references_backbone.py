import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pikfix.layers.vgg import VGG19_TAPS, Vgg19Features
from pikfix.references.backbone import load_backbone
from pikfix.references.errors import LibraryError
from pikfix.systems.pikfix.networks import load_checkpoint


@pytest.fixture(scope="module")
def vgg_state():
    """torchvision's layout of VGG-19 with random weights, classifier and last layers included."""
    torch.manual_seed(0)
    state = dict(Vgg19Features().state_dict())
    for number in (32, 34):
        state[f"features.{number}.weight"] = torch.zeros(512, 512, 3, 3)
        state[f"features.{number}.bias"] = torch.zeros(512)
    state["classifier.6.bias"] = torch.zeros(1000)
    return state


def test_a_checkpoint_gives_its_own_backbone(checkpoint):
    luminance = torch.rand(2, 1, 256, 256) * 2 - 1
    backbone = load_backbone(checkpoint)
    assert backbone.kind == "resnet"
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).similarity.backbone(luminance)
    for got, level in zip(backbone(luminance), expected, strict=True):
        torch.testing.assert_close(got, level)


def test_what_a_library_keeps_is_the_same_backbone(checkpoint, other_checkpoint, tmp_path):
    backbone = load_backbone(checkpoint)
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(backbone.to_bytes())
    again = load_backbone(kept)
    assert again.digest == backbone.digest != load_backbone(other_checkpoint).digest
    luminance = torch.rand(1, 1, 256, 256)
    torch.testing.assert_close(again(luminance), backbone(luminance), rtol=0, atol=0)


def test_vgg19_takes_torchvisions_files(vgg_state, tmp_path):
    torch.save(vgg_state, tmp_path / "vgg.pth")
    save_file(vgg_state, tmp_path / "vgg.safetensors")
    backbone = load_backbone(tmp_path / "vgg.pth")
    assert backbone.kind == "vgg19"
    assert backbone.digest == load_backbone(tmp_path / "vgg.safetensors").digest
    luminance = torch.rand(1, 1, 32, 32) * 2 - 1
    levels = backbone(luminance)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    x = ((luminance + 1) / 2 - mean) / std
    for number in (0, 2):
        weight, bias = vgg_state[f"features.{number}.weight"], vgg_state[f"features.{number}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
    torch.testing.assert_close(levels[0], x)
    assert VGG19_TAPS["relu5_2"] == 31


def test_unusable_files_are_named(tmp_path, vgg_state, checkpoint):
    def refused(path, match):
        with pytest.raises(LibraryError, match=match) as caught:
            load_backbone(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.safetensors", "no such file")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(checkpoint.read_bytes()[:5000])
    refused(torn, "not a whole safetensors file")
    (tmp_path / "text.pth").write_text("no weights")
    refused(tmp_path / "text.pth", "cannot be read as weights")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "not a pikfix checkpoint")
    short = {name: value for name, value in vgg_state.items() if name != "features.28.weight"}
    save_file(short, tmp_path / "short.safetensors")
    refused(tmp_path / "short.safetensors", "has no features.28.weight")
