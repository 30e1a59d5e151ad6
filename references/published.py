"""Torchvision's VGG-19 as a file of features, for libraries (`--backbone`) and for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pikfix.layers.vgg import Vgg19Features
from pikfix.photos import write_atomically
from pikfix.references.backbone import Backbone
from pikfix.systems.releases import ENOUGH, Release, Released, converted, likeness, names_in

TITLE = "torchvision's VGG-19 (vgg19-....pth)"


def _names(_: Any) -> Iterator[tuple[str, str]]:
    for name, _module in Vgg19Features().named_modules():
        yield name, name


_RELEASE = Release("features", TITLE, _names, unused=("classifier", "features.32", "features.34"))


def is_vgg19(released: Released) -> bool:
    """Whether a file has most of VGG-19's names."""
    return likeness(released, names_in(_RELEASE, Vgg19Features(), None)) >= ENOUGH


def import_features(released: Released, out: Path) -> None:
    """Write the convolutions that features are taken from; the file appears whole or not at all.

    Raises:
        ReleaseError: a parameter is missing, unknown, or of another shape.
        OSError: the file cannot be written.
    """
    network = Vgg19Features()
    network.load_state_dict(converted(released, _RELEASE, network, None))
    write_atomically(out, Backbone("vgg19", network, {}).to_bytes())
