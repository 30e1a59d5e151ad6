from __future__ import annotations

import pytest
import torch

from pikfix.layers.resnet import ResNetFeatures, load_torchvision_resnet
from pikfix.systems.pikfix.networks import PRESETS


def resnet34() -> ResNetFeatures:
    config = PRESETS["paper"]
    return ResNetFeatures(config.backbone_blocks, config.backbone_width)


def test_paper_preset_is_torchvisions_resnet34() -> None:
    network = resnet34()
    # torchvision's resnet34 has 21,797,672 parameters, 513,000 of them in its classifier.
    assert sum(p.numel() for p in network.parameters()) == 21_797_672 - 513_000
    state = network.state_dict()
    assert len(state) == 218 - 2
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.2.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.num_batches_tracked": (),
        "layer3.5.bn2.bias": (256,),
        "layer4.0.conv1.weight": (512, 256, 3, 3),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_published_state_dict_loads_by_name() -> None:
    network = resnet34()
    state = {
        name: torch.rand_like(t.float()).to(t.dtype) for name, t in network.state_dict().items()
    }
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    load_torchvision_resnet(network, state)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_unsuitable_state_dict_is_named(change: str) -> None:
    network = resnet34()
    state = dict(network.state_dict())
    if change == "missing":
        del state["layer3.1.conv1.weight"]
    else:
        state["layer3.1.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"layer3\.1\.conv1\.weight"):
        load_torchvision_resnet(network, state)


def test_features_have_the_four_scales() -> None:
    network = ResNetFeatures((1, 1, 1, 1), 8).eval()
    shapes = [tuple(f.shape) for f in network(torch.zeros(2, 1, 64, 96))]
    assert shapes == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
