"""The generators of faces that Wan et al. released, `latest_net_G.pth`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pikfix.systems.latent.faces.generator import PRESETS, FaceConfig
from pikfix.systems.releases import Release

_BLOCKS = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
_PARTS = (("first", "conv_0"), ("second", "conv_1"), ("shortcut", "conv_s"))
_NORMS = (("first_norm", "norm_0"), ("second_norm", "norm_1"), ("shortcut_norm", "norm_s"))
_SPADE = (
    ("running", "param_free_norm"),
    ("seen", "mlp_shared.0"),
    ("scale", "mlp_gamma"),
    ("shift", "mlp_beta"),
)


def names(_: FaceConfig) -> Iterator[tuple[str, str]]:
    """Our modules and theirs."""
    yield "entry", "fc"
    yield "output", "conv_img"
    for i, block in enumerate(_BLOCKS):
        for ours, theirs in _PARTS:
            yield f"blocks.{i}.{ours}", f"{block}.{theirs}"
        for norm, their_norm in _NORMS:
            for ours, theirs in _SPADE:
                yield f"blocks.{i}.{norm}.{ours}", f"{block}.{their_norm}.{theirs}"


def _configured(_: FaceConfig) -> FaceConfig:
    return replace(PRESETS["paper"], norm="running")


def _configured_512(_: FaceConfig) -> FaceConfig:
    return replace(PRESETS["paper"], norm="running", side=512)


RELEASES = (
    Release(
        "generator",
        "Wan et al.'s generator of faces (Setting_9_epoch_100/latest_net_G.pth)",
        names,
        configure=_configured,
    ),
    Release(
        "generator",
        "Wan et al.'s generator of faces of 512 x 512 (FaceSR_512/latest_net_G.pth)",
        names,
        configure=_configured_512,
        words=("FaceSR_512",),
    ),
)
