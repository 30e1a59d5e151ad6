"""The networks of Wan et al.'s release, with its names of parameters, from its list of layers.

Nothing of the product is used: what the product computes is compared with these.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

Widths = tuple[int, ...]


def reflected(before: int, after: int, side: int = 3) -> list[nn.Module]:
    return [nn.ReflectionPad2d(side // 2), nn.Conv2d(before, after, side)]


class Halved(nn.Module):
    """Every second position after the filter 1, 2, 1; the filter is a buffer, as released."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        filt = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.register_buffer("filt", filt[None, None].repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.filt, stride=2, groups=x.shape[1])


def normed(before: int, after: int) -> list[nn.Module]:
    return [*reflected(before, after), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*normed(before, after), *normed(after, after))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Up(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            *reflected(before, after),
        )
        self.conv_block = Block(2 * after, after)

    def forward(self, x: Tensor, bridge: Tensor) -> Tensor:
        return self.conv_block(torch.cat((self.up(x), bridge), dim=1))


class ReleasedDetector(nn.Module):
    """Of scratches, for grey sRGB in [-1, 1]; logits."""

    def __init__(self, widths: Widths = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = nn.Sequential(*reflected(1, widths[0], 7), nn.LeakyReLU(0.2))
        self.down_sample = nn.ModuleList(
            nn.Sequential(*normed(before, before), Halved(before)) for before, _ in pairs
        )
        self.down_path = nn.ModuleList(Block(*pair) for pair in pairs)
        self.up_path = nn.ModuleList(Up(after, before) for before, after in reversed(pairs))
        self.last = nn.Sequential(*reflected(widths[0], 1))

    def forward(self, grey: Tensor) -> Tensor:
        x, bridges = self.first(grey), []
        for shrink, path in zip(self.down_sample, self.down_path, strict=True):
            bridges.append(x)
            x = path(shrink(x))
        for path in self.up_path:
            x = path(x, bridges.pop())
        return self.last(x)


class Spade(nn.Module):
    """Normed by running statistics, modulated by what the face shows."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(3, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        seen = self.mlp_shared(F.interpolate(face, x.shape[2:], mode="bilinear"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(seen)) + self.mlp_beta(seen)


class SpadeBlock(nn.Module):
    def __init__(self, before: int, after: int, hidden: int) -> None:
        super().__init__()
        middle = min(before, after)
        self.conv_0 = spectral_norm(nn.Conv2d(before, middle, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(middle, after, 3, padding=1))
        self.norm_0, self.norm_1 = Spade(before, hidden), Spade(middle, hidden)
        if before != after:
            self.conv_s = spectral_norm(nn.Conv2d(before, after, 1, bias=False))
            self.norm_s = Spade(before, hidden)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        change = self.conv_0(F.leaky_relu(self.norm_0(x, face), 0.2))
        change = self.conv_1(F.leaky_relu(self.norm_1(change, face), 0.2))
        return change + (self.conv_s(self.norm_s(x, face)) if hasattr(self, "conv_s") else x)


class ReleasedFaces(nn.Module):
    """The generator of faces, for sRGB in [-1, 1]."""

    def __init__(self, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.fc = nn.Conv2d(3, 16 * width, 3, padding=1)
        for name in ("head_0", "G_middle_0", "G_middle_1"):
            self.add_module(name, SpadeBlock(16 * width, 16 * width, hidden))
        for index in range(4):
            before = 16 * width >> index
            self.add_module(f"up_{index}", SpadeBlock(before, before // 2, hidden))
        self.conv_img = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, face: Tensor) -> Tensor:
        seed = face.shape[-1] // 32
        x = self.head_0(self.fc(F.interpolate(face, (seed, seed), mode="bilinear")), face)
        x = self.G_middle_0(F.interpolate(x, scale_factor=2), face)
        x = self.G_middle_1(x, face)
        for index in range(4):
            x = self.get_submodule(f"up_{index}")(F.interpolate(x, scale_factor=2), face)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


def trained(kind: Callable[..., nn.Module], *words: Any) -> nn.Module:
    """A network as training may leave it, always the same: no statistic or bias at its start.

    A spectral norm's vectors are as they were drawn, far from converged.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(*words)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        last = name.rpartition(".")[2]
        if last in {"running_mean", "bias"}:
            tensor.data.normal_(0, 0.1, generator=generator)
        elif last == "running_var":
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif last == "num_batches_tracked":
            tensor.data.fill_(7)
    return network.eval()
