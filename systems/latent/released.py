"""The networks that Wan et al. released for whole photos, each folder's `latest_net_....pth`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pikfix.systems.damage import released as damage
from pikfix.systems.latent.networks import PRESETS, LatentConfig
from pikfix.systems.latent.networks.config import MappingVariant
from pikfix.systems.releases import Release

Names = Iterator[tuple[str, str]]

_STEPS = 4  # of widening, and of narrowing
_OF_THREE = 3  # a convolution, a norm, an activation


def _blocks(ours: str, theirs: str, count: int, first: int = 0) -> Names:
    for i in range(count):
        yield f"{ours}.{i}.first", f"{theirs}.{first + i}.conv_block.1"
        yield f"{ours}.{i}.second", f"{theirs}.{first + i}.conv_block.5"


def _convolutions(ours: str, theirs: str, first: int = 0) -> Names:
    for i in range(_STEPS):
        yield f"{ours}.{i}", f"{theirs}.{first + _OF_THREE * i}"


def vae_names(config: LatentConfig) -> Names:
    """Our modules and theirs, of one VAE."""
    blocks = config.vae_blocks
    yield from (("encoder.stem", "encoder.1"), ("encoder.down.0", "encoder.4"))
    yield "encoder.down.1", "encoder.7"
    yield from _blocks("encoder.blocks", "encoder", blocks, first=10)
    yield from _blocks("decoder.blocks", "decoder", blocks)
    for i, place in enumerate((0, 3)):
        yield f"decoder.up.{i}", f"decoder.{blocks + place}"
    yield "decoder.output", f"decoder.{blocks + 7}"


def quality_names(config: LatentConfig) -> Names:
    """Our modules and theirs, of the mapping without holes."""
    trunk, first = config.trunk_blocks, _OF_THREE * _STEPS
    yield from _convolutions("widen", "model")
    yield from _blocks("trunk", "model", trunk, first)
    yield from _convolutions("narrow", "model", first + trunk)


def scratch_names(config: LatentConfig) -> Names:
    """Our modules and theirs, of the mapping with the partial non-local block."""
    yield from _convolutions("widen", "before_NL")
    for ours, theirs in (("query", "theta"), ("key", "phi"), ("value", "g"), ("output", "W")):
        yield f"nonlocal_block.{ours}", f"NL.{theirs}"
    yield from _blocks("nonlocal_block.blocks", "NL.res_block", config.context_blocks)
    yield from _blocks("trunk", "after_NL", config.trunk_blocks)
    yield from _convolutions("narrow", "after_NL", config.trunk_blocks)


def patch_names(_: LatentConfig) -> Names:
    """Our modules and theirs, of the mapping that copies patches."""
    yield from _convolutions("widen", "before_NL")
    yield from _blocks("patches.0.blocks", "before_NL", 2, _OF_THREE * _STEPS)
    yield from _blocks("patches.1.blocks", "res_block_1", 2)
    yield from _blocks("patches.2.blocks", "res_block_2", 2)
    for i in range(3):
        yield from _blocks(f"patches.{i}.attention.blocks", f"NL_scale_{i + 1}.res_block", 1)
        yield f"patches.{i}.attention.combine", f"NL_scale_{i + 1}.F_Combine"
    yield from _blocks("trunk", "after_NL", 2)
    yield from _convolutions("narrow", "after_NL", 2)


def _mapping(
    variant: MappingVariant, title: str, names: Callable[[LatentConfig], Names], never_with: str
) -> Release:
    return Release(
        "mapping",
        f"Wan et al.'s {title}",
        names,
        place="mapping",
        configure=lambda _: replace(PRESETS["paper"], mapping=variant),
        never_with=(never_with,),
    )


RELEASES = (
    _mapping("quality", "mapping_quality", quality_names, "VAE_B_scratch"),
    _mapping("scratch", "mapping_scratch", scratch_names, "VAE_B_quality"),
    _mapping("patch", "mapping_Patch_Attention", patch_names, "VAE_B_quality"),
    *(
        Release(place, f"Wan et al.'s {word}", vae_names, place=place, words=(word,))
        for place, word in (("vae_old", "VAE_A"), ("vae_clean", "VAE_B"))
    ),
    Release(
        "damage",
        damage.TITLE,
        lambda config: damage.names(config.damage or damage.CONFIG),
        place="damage.detector",
        configure=lambda config: replace(config, damage=damage.CONFIG),
        unused=damage.UNUSED,
        required=False,
    ),
)
