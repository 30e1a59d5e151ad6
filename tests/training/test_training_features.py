from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from pikfix.training.errors import TrainingError
from pikfix.training.features import SqueezeNet, Vgg19, load_feature_net


def test_vgg19_has_torchvisions_names_and_taps(tmp_path):
    """Against a plain chain of convolutions in torchvision's numbering of configuration E."""
    torch.manual_seed(0)
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    widths = (64, 64, 128, 128, *[256] * 4, *[512] * 8)
    state, channels = {}, 3
    for number, width in zip(numbers, widths, strict=True):
        conv = nn.Conv2d(channels, width, 3)
        state[f"features.{number}.weight"] = conv.weight.data
        state[f"features.{number}.bias"] = conv.bias.data
        channels = width
    state["classifier.0.weight"] = torch.zeros(1)
    path = tmp_path / "vgg19.pth"
    torch.save(state, path)
    net = load_feature_net(path)
    assert isinstance(net, Vgg19)
    assert not any(p.requires_grad for p in net.parameters())

    rgb = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, expected = (rgb - mean) / std, []
    for block, count in enumerate((2, 2, 4, 4, 2)):
        for index in range(count):
            number = numbers[sum((2, 2, 4, 4, 2)[:block]) + index]
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            if index == 1 and block > 0:
                expected.append(x)
        x = F.max_pool2d(x, 2)
    ours = net(rgb)
    assert [t.shape[1:] for t in ours] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_squeezenet_reads_half_precision_and_takes_bgr_of_255(tmp_path):
    torch.manual_seed(0)
    source = SqueezeNet()
    path = tmp_path / "squeezenet.safetensors"
    save_file({name: value.half() for name, value in source.state_dict().items()}, path)
    net = load_feature_net(path)
    assert isinstance(net, SqueezeNet)
    rgb = torch.rand(1, 3, 227, 227, generator=torch.Generator().manual_seed(1))
    levels = net(rgb)
    # Caffe rounds pooled sizes up: 227 -> 113 -> 56 -> 28 -> 14.
    assert [t.shape[1:] for t in levels] == [
        (64, 113, 113),
        (128, 56, 56),
        (256, 28, 28),
        (512, 14, 14),
    ]
    assert net.classify(rgb).shape == (1, 1000)
    red, green, blue = (rgb[:, i : i + 1] * 255 for i in range(3))
    caffe = torch.cat((blue - 104, green - 117, red - 123), dim=1)
    conv = net.conv1
    first = F.relu(F.conv2d(caffe, conv.weight, conv.bias, stride=2))
    torch.testing.assert_close(levels[0], first, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("content", [b"", b"not a state dict", None])
def test_a_file_that_is_no_feature_net_is_refused(tmp_path, content):
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"weights{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(TrainingError, match="cannot be read"):
            load_feature_net(path)


def test_another_networks_weights_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"layer1.weight": torch.zeros(2)}, path)
    with pytest.raises(TrainingError, match="neither"):
        load_feature_net(path)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(TrainingError, match="does not fit Vgg19"):
        load_feature_net(path)


def test_pickled_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'hit')!r}, 'w')",))

    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(TrainingError):
        load_feature_net(path)
    assert not (tmp_path / "hit").exists()
