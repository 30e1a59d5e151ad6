"""ResNet with basic blocks, as the similarity sub-net's feature extractor.

He et al., CVPR 2016. Parameter names are torchvision's, so that its published ResNet-34 state dict
loads by name; the classifier `fc` is not part of this network.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import StridedPointwise

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                StridedPointwise(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetFeatures(nn.Module):
    """Features of the four stages for a grey picture.

    Args:
        blocks: basic blocks per stage; (3, 4, 6, 3) is ResNet-34.
        width: channels of the first stage; 64 is ResNet-34. The stages double it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.channels = tuple(width << stage for stage in range(4))
        in_channels = width
        for stage, (count, channels) in enumerate(zip(blocks, self.channels, strict=True)):
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(BasicBlock(in_channels, channels, stride))
                in_channels = channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, luminance: Tensor) -> list[Tensor]:
        """Extract the features.

        Args:
            luminance: `[B, 1, H, W]`, L/50 - 1, sides multiples of 32.

        Returns:
            Four maps at 1/4, 1/8, 1/16 and 1/32, `[B, width << i, H / 2^(i+2), W / 2^(i+2)]`.
        """
        grey = (luminance + 1) / 2
        x = (grey - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(4):
            x = cast(nn.Sequential, self.get_submodule(f"layer{stage + 1}"))(x)
            features.append(x)
        return features


def load_torchvision_resnet(network: ResNetFeatures, state: dict[str, Tensor]) -> None:
    """Copy a state dict of torchvision's `resnet34` into `network`, which must be of that size.

    Raises:
        ValueError: a parameter is missing or of another shape.
    """
    own = network.state_dict()
    for name, parameter in own.items():
        if name not in state:
            raise ValueError(f"the state dict has no {name}: give torchvision's resnet34 weights")
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"{name} is {tuple(state[name].shape)}, the network needs {tuple(parameter.shape)}"
            )
    network.load_state_dict({name: state[name] for name in own})
