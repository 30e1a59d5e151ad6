"""Frozen feature nets for the perceptual loss and distillation: VGG-19 and SqueezeNet 1.1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.vgg import Vgg19Features
from pikfix.training.errors import TrainingError, in_one_line


class FeatureNet(nn.Module):
    """A frozen network that answers several levels of features.

    relative: whether its features have no published scale, so that losses should compare them
        relative to their own magnitude.
    channels: of the last features.
    """

    relative: bool
    channels: int

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Features of sRGB `[B, 3, H, W]` in [0, 1], from fine to coarse."""
        raise NotImplementedError


PERCEPTUAL_TAPS = ("relu2_2", "relu3_2", "relu4_2", "relu5_2")
"""Of Pik-Fix's perceptual loss."""


class Vgg19(Vgg19Features, FeatureNet):
    """VGG-19's activations of a perceptual loss.

    Args:
        taps: their names, from shallow to deep.
    """

    relative = False
    channels = 512

    def __init__(self, taps: Sequence[str] = PERCEPTUAL_TAPS) -> None:
        super().__init__(taps)


class _Fire(nn.Module):
    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze1x1(x))
        return F.relu(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


class SqueezeNet(FeatureNet):
    """SqueezeNet 1.1 (Iandola et al., 2016) with the layer names of its Caffe release.

    The levels are the outputs of conv1, fire3, fire5 and fire9 at 1/2, 1/4, 1/8 and 1/16.
    """

    relative = True
    channels = 512
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fire2 = _Fire(64, 16, 64)
        self.fire3 = _Fire(128, 16, 64)
        self.fire4 = _Fire(128, 32, 128)
        self.fire5 = _Fire(256, 32, 128)
        self.fire6 = _Fire(256, 48, 192)
        self.fire7 = _Fire(384, 48, 192)
        self.fire8 = _Fire(384, 64, 256)
        self.fire9 = _Fire(512, 64, 256)
        self.conv10 = nn.Conv2d(512, 1000, 1, padding=1)
        mean = torch.tensor((104.0, 117.0, 123.0)).view(3, 1, 1)  # blue, green, red
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = rgb.flip(1) * 255 - self.mean
        first = F.relu(self.conv1(x))
        second = self.fire3(self.fire2(_pool(first)))
        third = self.fire5(self.fire4(_pool(second)))
        last = self.fire9(self.fire8(self.fire7(self.fire6(_pool(third)))))
        return [first, second, third, last]

    def classify(self, rgb: Tensor) -> Tensor:
        """ImageNet scores `[B, 1000]`, which show that weights and input format fit."""
        out: Tensor = F.relu(self.conv10(self.forward(rgb)[-1])).mean(dim=(2, 3))
        return out


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def load_feature_net(path: Path, taps: Sequence[str] = PERCEPTUAL_TAPS) -> FeatureNet:
    """Load a frozen feature net; the parameter names tell which one it is.

    Args:
        path: safetensors, or a PyTorch state dict (loaded without executing anything).
        taps: what a VGG-19 answers.

    Raises:
        TrainingError: the file cannot be read or is neither VGG-19 nor SqueezeNet 1.1.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a damaged file
        raise TrainingError(
            f"the feature weights {path} cannot be read: {in_one_line(error)}"
        ) from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path} holds no state dict")
    if "fire2.squeeze1x1.weight" in state:
        net: FeatureNet = SqueezeNet()
    elif "features.0.weight" in state:
        net = Vgg19(taps)
        # The classifier and what lies behind the last tap are not used.
        own = net.state_dict()
        state = {name: value for name, value in state.items() if name in own}
    else:
        raise TrainingError(
            f"{path} holds neither torchvision's VGG-19 (features.0.weight, ...) nor Caffe's "
            "SqueezeNet 1.1 (fire2.squeeze1x1.weight, ...)"
        )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(
            f"{path} does not fit {type(net).__name__}: {in_one_line(error)}"
        ) from error
    return net.float().eval().requires_grad_(False)
