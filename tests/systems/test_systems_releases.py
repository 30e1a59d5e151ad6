"""Published weights as checkpoints: the same numbers, and what is said where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from released_latent import ReleasedPatch, ReleasedQuality, ReleasedScratch, ReleasedVae
from released_networks import ReleasedDetector, ReleasedFaces, trained
from released_torchvision import ReleasedResNet34, ReleasedVgg
from torch import Tensor, nn

from pikfix.layers.color import rgb_to_lab
from pikfix.layers.vgg import Vgg19Features
from pikfix.references import published
from pikfix.references.backbone import load_backbone
from pikfix.systems.damage import released as damage
from pikfix.systems.damage.networks import DamageConfig
from pikfix.systems.latent import released as latent
from pikfix.systems.latent.faces import released as faces
from pikfix.systems.latent.faces.generator import FaceConfig, FaceGenerator
from pikfix.systems.latent.networks import Latent, LatentConfig
from pikfix.systems.pikfix import released as pikfix
from pikfix.systems.releases import (
    Release,
    Released,
    ReleaseError,
    converted,
    import_released,
    read_released,
    renamed,
)

WIDTHS = (4, 6, 8, 10, 12)
DETECTOR = DamageConfig("paper", detector="scratch_unet", detector_channels=WIDTHS)
FACES = FaceConfig("paper", width=4, hidden=6, norm="running")
LATENT = LatentConfig("paper", vae_channels=4, mapping_channels=8, attention_channels=8)


def released(network: nn.Module) -> Released:
    return Released(Path("given.pth"), network.state_dict(), "")


FULL: dict[str, tuple[Release, Callable[[], nn.Module], Any]] = {
    "detector": (damage.RELEASES[0], ReleasedDetector, damage.CONFIG),
    "faces": (faces.RELEASES[0], ReleasedFaces, replace(FACES, width=64, hidden=128)),
    "resnet34": (pikfix.RELEASES[0], ReleasedResNet34, pikfix.PRESETS["paper"]),
    **{
        name: (release, kind, replace(latent.PRESETS["paper"], mapping=variant))
        for name, release, kind, variant in zip(
            ("quality", "scratch", "patch", "vae"),
            latent.RELEASES[:4],
            (ReleasedQuality, ReleasedScratch, ReleasedPatch, ReleasedVae),
            ("quality", "scratch", "patch", "scratch"),
            strict=True,
        )
    },
}


def built(release: Release, config: Any) -> nn.Module:
    kinds = {FaceConfig: FaceGenerator, LatentConfig: Latent, DamageConfig: damage_network}
    return kinds.get(type(config), pikfix_network)(config).get_submodule(release.place)


def damage_network(config: DamageConfig) -> nn.Module:
    from pikfix.systems.damage.networks import Damage

    return Damage(config)


def pikfix_network(config: Any) -> nn.Module:
    from pikfix.systems.pikfix.networks import PikFix

    return PikFix(config)


@pytest.mark.parametrize("name", FULL)
def test_the_table_joins_equal_shapes_at_full_width(name: str) -> None:
    release, kind, config = FULL[name]
    with torch.device("meta"):
        own, theirs = built(release, config).state_dict(), kind().state_dict()
    table = renamed(own, release.names(config))
    for ours, called in table.items():
        shape = theirs[called if called in theirs else f"{called}_orig"].shape
        assert own[ours].shape == shape, (ours, called)
    assert len(set(table.values())) == len(own)


def pictures(side: int, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_an_imported_detector_computes_what_the_published_one_does() -> None:
    theirs = trained(ReleasedDetector, WIDTHS)
    ours = built(damage.RELEASES[0], DETECTOR).eval()
    ours.load_state_dict(converted(released(theirs), damage.RELEASES[0], ours, DETECTOR))
    grey = pictures(64, 1)
    photo_l = rgb_to_lab((grey.expand(1, 3, 64, 64) + 1) / 2)[:, :1]
    torch.testing.assert_close(ours(photo_l), theirs(grey), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_imported_faces_are_the_published_ones() -> None:
    theirs = trained(ReleasedFaces, 4, 6)
    ours = FaceGenerator(FACES).eval()
    ours.load_state_dict(converted(released(theirs), faces.RELEASES[0], ours, FACES))
    for side in (256, 512):
        face = pictures(side)
        expected = theirs(face)
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(ours(face), expected, atol=1e-5, rtol=1e-4)


def test_a_spectral_norm_is_folded_to_the_last_bit() -> None:
    theirs = trained(ReleasedFaces, 4, 6)
    ours = FaceGenerator(FACES)
    found = converted(released(theirs), faces.RELEASES[0], ours, FACES)
    theirs(pictures(64))  # computes the weights
    assert torch.equal(found["blocks.3.shortcut.weight"], theirs.up_0.conv_s.weight)
    assert torch.equal(found["blocks.0.first.weight"], theirs.head_0.conv_0.weight)


@torch.no_grad()
def test_an_imported_vae_computes_what_the_published_one_does() -> None:
    theirs, release = trained(ReleasedVae, 4), latent.RELEASES[3]
    ours = Latent(LATENT).vae_old.eval()
    ours.load_state_dict(converted(released(theirs), release, ours, LATENT))
    photo = pictures(64)
    code = theirs.encoder(photo)
    torch.testing.assert_close(ours.encoder(photo), code, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decoder(code), theirs.decoder(code), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("index", "kind"), [(0, ReleasedQuality), (1, ReleasedScratch), (2, ReleasedPatch)]
)
def test_an_imported_mapping_computes_what_the_published_one_does(
    index: int, kind: Callable[[int, int], nn.Module]
) -> None:
    release = latent.RELEASES[index]
    theirs = trained(kind, 4, 8)
    if isinstance(theirs, ReleasedScratch):
        for name in ("theta", "phi"):  # so that places attend to few others, not to all alike
            getattr(theirs.NL, name).weight.mul_(3)
    config = replace(LATENT, mapping=("quality", "scratch", "patch")[index])
    ours = Latent(config).mapping.eval()
    ours.load_state_dict(converted(released(theirs), release, ours, config))
    code, hole = pictures(32, 4).double(), torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    hole[..., 8:24, 3:19] = 1
    expected = theirs.double()(code, hole)
    torch.testing.assert_close(ours.double()(code, hole), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_imported_resnet_is_torchvisions() -> None:
    theirs, release = trained(ReleasedResNet34, 4), pikfix.RELEASES[0]
    config = replace(pikfix.PRESETS["paper"], backbone_width=4)
    ours = built(release, config).eval()
    ours.load_state_dict(converted(released(theirs), release, ours, config))
    luminance = pictures(64, 1)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    expected = theirs(((luminance + 1) / 2 - mean) / std)
    for one, other in zip(ours(luminance), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_vgg19_becomes_features_for_libraries_and_training(tmp_path: Path) -> None:
    from pikfix.training.features import load_feature_net

    theirs = released(trained(ReleasedVgg))
    assert published.is_vgg19(theirs)
    published.import_features(theirs, tmp_path / "vgg19.safetensors")
    assert load_backbone(tmp_path / "vgg19.safetensors").kind == "vgg19"
    features = load_feature_net(tmp_path / "vgg19.safetensors")
    assert isinstance(features, Vgg19Features)
    assert torch.equal(features.features[28].weight, theirs.state["features.28.weight"])
    sixteen = released(ReleasedVgg((2, 2, 3, 3, 3)))
    with pytest.raises(ReleaseError, match=r"VGG-19 .* it lacks features.16.weight"):
        published.import_features(sixteen, tmp_path / "vgg16.safetensors")
    assert not (tmp_path / "vgg16.safetensors").exists()


def renamed_key(state: dict[str, Tensor]) -> None:
    state["up_path.0.up.3.weight"] = state.pop("up_path.0.up.2.weight")


def odd_shape(state: dict[str, Tensor]) -> None:
    state["last.1.weight"] = state["last.1.weight"][:, :2]


def odd_type(state: dict[str, Tensor]) -> None:
    state["last.1.bias"] = state["last.1.bias"].to(torch.int8)


def odd_key(state: dict[str, Tensor]) -> None:
    state["extra.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed_key, r"it lacks up_path\.0\.up\.2\.weight"),
        (odd_shape, r"its last\.1\.weight is 1 x 2 x 3 x 3, not 1 x 4 x 3 x 3"),
        (odd_type, r"its last\.1\.bias is of torch\.int8"),
        (odd_key, r"it has the unknown extra\.weight"),
    ],
)
def test_an_odd_parameter_is_named(change: Callable[[dict[str, Tensor]], None], named: str) -> None:
    state = dict(trained(ReleasedDetector, WIDTHS).state_dict())
    change(state)
    network = built(damage.RELEASES[0], DETECTOR)
    with pytest.raises(ReleaseError, match=named) as caught:
        converted(Released(Path("f.pt"), state, ""), damage.RELEASES[0], network, DETECTOR)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["u", "v"])
def test_a_spectral_norm_without_its_vectors_is_named(end: str) -> None:
    state = dict(trained(ReleasedFaces, 4, 6).state_dict())
    short = state.pop(f"up_1.conv_0.weight_{end}")[:-1]
    network = FaceGenerator(FACES)
    with pytest.raises(ReleaseError, match=rf"it lacks up_1\.conv_0\.weight_{end}"):
        converted(Released(Path("f.pt"), state, ""), faces.RELEASES[0], network, FACES)
    state[f"up_1.conv_0.weight_{end}"] = short
    with pytest.raises(ReleaseError, match=rf"its up_1\.conv_0\.weight_{end} is \d+, not \d+"):
        converted(Released(Path("f.pt"), state, ""), faces.RELEASES[0], network, FACES)


class Runs:
    """What a pickle may do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for legacy in (False, True):
        torch.save(
            {"model_state": {"first.1.weight": torch.zeros(2)}, "args": Runs()},
            "bad.pt",
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(
            ReleaseError, match=r"bad\.pt: holds code or objects .* never"
        ) as caught:
            read_released(Path("bad.pt"))
        assert "\n" not in str(caught.value)
        assert not Path("ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_older_and_newer_versions_are_read(tmp_path: Path, legacy: bool) -> None:
    state = {"module.a.weight": torch.ones(2, dtype=torch.float16), "module.n": torch.tensor(3)}
    path = tmp_path / "m.pth"
    torch.save({"model_state": state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    read = read_released(path)
    assert list(read.state) == ["a.weight", "n"]
    assert read.state["a.weight"].dtype == torch.float32
    assert len(read.sha256) == 64


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file"),
        (b"", "not a whole file of PyTorch's"),
        (b"\x89PNG\r\n", "not a whole file of PyTorch's"),
        ([1, 2], "holds no parameters by name"),
        ({}, "holds no parameters by name"),
        ({"a": 1}, "a is no plain tensor"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds values that are no numbers"),
    ],
)
def test_what_holds_no_parameters_is_refused_in_one_line(
    tmp_path: Path, content: Any, named: str
) -> None:
    path = tmp_path / "m.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ReleaseError, match=named) as caught:
        read_released(path)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ReleaseError, match=r"m\.pth: .*download or copy it again"):
        read_released(path)


def test_a_checkpoint_of_this_project_is_no_published_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x08\x00")
    with pytest.raises(ReleaseError, match=r"give the published \.pth or \.pt"):
        read_released(path)


def test_nothing_known_is_refused_with_what_is(tmp_path: Path) -> None:
    odd = Released(Path("odd.pth"), {"x.weight": torch.zeros(1)}, "")
    with pytest.raises(ReleaseError, match=r"names such as x\.weight.*FT_Epoch_latest\.pt"):
        import_released([odd], tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
