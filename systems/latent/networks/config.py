"""What a latent-translation network is made of: one configuration, two presets, the variants."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pikfix.systems.damage.networks import DamageConfig

MappingVariant = Literal["quality", "scratch", "patch"]


@dataclass(frozen=True)
class LatentConfig:
    """Every choice that changes a tensor's shape or the networks' arithmetic.

    damage: finds what is to be masked (`systems/damage/networks.py`); None leaves that to the
        mask that comes with a photo.
    vae_channels: of both VAEs everywhere, the latent included.
    vae_blocks: residual blocks before the latent, and as many behind it.
    mapping: "quality" for photos without holes; "scratch" adds what the partial non-local block
        finds elsewhere in the photo; "patch" copies patches of three sizes instead, for large
        photos.
    mapping_channels: of the mapping's trunk; four convolutions double `vae_channels` up to it.
    attention_channels: of queries, keys and values of the partial non-local block.
    context_blocks: residual blocks behind the partial non-local block.
    trunk_blocks: residual blocks behind the merge.
    limit: longest side at which a photo is translated; a larger one is shrunk to it, and what was
        changed is carried over to its own size.

    Raises:
        ValueError: a field has a value that no network can be built from.
    """

    name: str = "custom"
    damage: DamageConfig | None = None
    vae_channels: int = 64
    vae_blocks: int = 4
    mapping: MappingVariant = "scratch"
    mapping_channels: int = 512
    attention_channels: int = 512
    context_blocks: int = 3
    trunk_blocks: int = 6
    limit: int = 1024

    def __post_init__(self) -> None:
        if self.mapping not in get_args(MappingVariant):
            raise ValueError(f"mapping is {self.mapping!r}: one of {get_args(MappingVariant)}")
        for name in (
            "vae_channels",
            "vae_blocks",
            "mapping_channels",
            "attention_channels",
            "context_blocks",
            "trunk_blocks",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.limit < 64 or self.limit % 32:
            raise ValueError(f"limit is {self.limit}: it must be a multiple of 32, at least 64")

    @property
    def side_multiple(self) -> int:
        """Of the sides at which a photo is translated: two halvings, and whole patches."""
        return 32 if self.mapping == "patch" else 4

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored inside a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatentConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: unknown fields, or values that no network can be built from.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration fields: {', '.join(unknown)}")
        fields = dict(values)
        if isinstance(values.get("damage"), dict):
            fields["damage"] = DamageConfig.from_dict(values["damage"])
        return cls(**fields)


PRESETS: dict[str, LatentConfig] = {
    "paper": LatentConfig(name="paper"),
    "compact": LatentConfig(
        name="compact",
        damage=DamageConfig(name="compact", threshold=0.7, softness=0.5, margin=1),
        vae_channels=48,
        mapping_channels=192,
        attention_channels=64,
        context_blocks=1,
        trunk_blocks=4,
    ),
}
"""`paper`: the published layout at full width. `compact`: the same layout for a CPU."""
