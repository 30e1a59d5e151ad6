"""torchvision's ResNet-34 and VGG-19 with its names, from their papers' tables of layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Basic(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        change = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(change + self.downsample(x))


class ReleasedResNet34(nn.Module):
    """For normalised RGB; the outputs of the four stages."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, count in enumerate((3, 4, 6, 3)):
            after = width << stage
            blocks = [Basic(before, after, 2 if stage else 1)]
            blocks += [Basic(after, after, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            before = after
        self.fc = nn.Linear(before, 10)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(rgb))), 3, 2, 1)
        found = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            found.append(x)
        return found


class ReleasedVgg(nn.Module):
    """For normalised RGB; the convolutions, and what stands for the classifier."""

    def __init__(self, counts: tuple[int, ...] = (2, 2, 4, 4, 4)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, count in zip((64, 128, 256, 512, 512), counts, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(4, 2))
