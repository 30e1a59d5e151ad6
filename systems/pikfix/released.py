"""What of Pik-Fix others have published: the backbone of similarity, torchvision's ResNet-34."""

from __future__ import annotations

from collections.abc import Iterator

from pikfix.systems.pikfix.networks import PRESETS, PikFixConfig
from pikfix.systems.releases import Release


def names(config: PikFixConfig) -> Iterator[tuple[str, str]]:
    """Our modules are called as theirs."""
    yield from (("conv1", "conv1"), ("bn1", "bn1"))
    for stage, count in enumerate(config.backbone_blocks, 1):
        for block in range(count):
            for module in ("conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1"):
                name = f"layer{stage}.{block}.{module}"
                yield name, name


RELEASES = (
    Release(
        "backbone",
        "torchvision's ResNet-34 (resnet34-....pth)",
        names,
        place="similarity.backbone",
        configure=lambda _: PRESETS["paper"],
        unused=("fc",),
        left="everything but similarity's backbone",
    ),
)
