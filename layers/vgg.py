"""VGG-19's convolutions as a feature extractor, with torchvision's parameter names.

Simonyan and Zisserman, ICLR 2015. Its published state dict loads by name; the classifier is not
part of this network, nor are the convolutions behind the last feature that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_LAYOUT = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

VGG19_TAPS: Mapping[str, int] = {
    "relu1_1": 1,
    "relu1_2": 3,
    "relu2_1": 6,
    "relu2_2": 8,
    "relu3_1": 11,
    "relu3_2": 13,
    "relu4_1": 20,
    "relu4_2": 22,
    "relu5_1": 29,
    "relu5_2": 31,
}
"""Positions in torchvision's `features` of the activations that perceptual measures take."""

_USUAL_TAPS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")


class Vgg19Features(nn.Module):
    """Activations of VGG-19 for an RGB picture.

    Args:
        taps: names of `VGG19_TAPS`, from shallow to deep.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, taps: Sequence[str] = _USUAL_TAPS) -> None:
        super().__init__()
        self._taps = tuple(VGG19_TAPS[name] for name in taps)
        layers: list[nn.Module] = []
        channels = 3
        for width in _LAYOUT:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers[: max(self._taps) + 1])
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Activations of sRGB `[B, 3, H, W]` in [0, 1], one map per tap, from fine to coarse."""
        x = (rgb - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                found.append(x)
        return found


def load_torchvision_vgg19(network: Vgg19Features, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict of torchvision's `vgg19` into `network`, ignoring what it does not have.

    Raises:
        ValueError: a parameter is missing or of another shape.
    """
    own = network.state_dict()
    for name, parameter in own.items():
        if name not in state:
            raise ValueError(f"the state dict has no {name}: give torchvision's vgg19 weights")
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"{name} is {tuple(state[name].shape)}, the network needs {tuple(parameter.shape)}"
            )
    network.load_state_dict({name: state[name] for name in own})
