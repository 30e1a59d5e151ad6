"""The latent networks against the published tables and against twins written for reading."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pikfix.systems.latent.networks import (
    PRESETS,
    Latent,
    LatentConfig,
    Mapping,
    PartialNonlocal,
    PatchAttention,
    PatchDiscriminator,
    Sizing,
    TwoScaleDiscriminator,
    Vae,
)

PAPER, COMPACT = PRESETS["paper"], PRESETS["compact"]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(module: nn.Module, kinds: tuple[type, ...], *inputs: Tensor) -> list[tuple[int, int]]:
    """Channels and side of what each layer of some kinds gives, in the order they run."""
    found: list[tuple[int, int]] = []
    handles = [
        part.register_forward_hook(lambda _m, _i, y: found.append((y.shape[1], y.shape[-1])))
        for part in module.modules()
        if isinstance(part, kinds)
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return found


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in float64 with random weights of a size at which nothing vanishes."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * fan**-0.5
    return module


def copied(target: nn.Module, sources: Iterable[nn.Module]) -> nn.Module:
    """A chain of layers with the weights of others, in their order."""
    for layer, source in zip(convolutions(target.double()), sources, strict=True):
        layer.load_state_dict(source.state_dict())
    return target


class Block(nn.Module):
    """The published residual block, layer by layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.chain = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.chain(x)


def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.InstanceNorm2d(channels), nn.ReLU()]


def convolutions(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_the_vaes_have_the_published_layers() -> None:
    vae = Vae(64, 4)
    assert parameters(vae) == 872_131  # 0.87 M
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    photo = torch.rand(1, 3, 256, 256)
    encoded = shapes(vae.encoder, kinds, photo)
    assert encoded == [(64, 256), (64, 128)] + [(64, 64)] * 9
    decoded = shapes(vae.decoder, kinds, torch.rand(1, 64, 64, 64))
    assert decoded == [(64, 64)] * 8 + [(64, 128), (64, 256), (3, 256)]


def test_the_vaes_compute_what_the_published_layers_do() -> None:
    vae = drawn(Vae(6, 2))
    encoder = nn.Sequential(
        nn.ReflectionPad2d(3),
        *normed(nn.Conv2d(3, 6, 7), 6),
        *normed(nn.Conv2d(6, 6, 4, 2, 1), 6),
        *normed(nn.Conv2d(6, 6, 4, 2, 1), 6),
        Block(6),
        Block(6),
    )
    decoder = nn.Sequential(
        Block(6),
        Block(6),
        *normed(nn.ConvTranspose2d(6, 6, 4, 2, 1), 6),
        *normed(nn.ConvTranspose2d(6, 6, 4, 2, 1), 6),
        nn.ReflectionPad2d(3),
        nn.Conv2d(6, 3, 7),
        nn.Tanh(),
    )
    photo = torch.rand(2, 3, 24, 36, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latent = copied(encoder, convolutions(vae.encoder))(photo)
        torch.testing.assert_close(vae.encoder(photo), latent)
        expected = copied(decoder, convolutions(vae.decoder))(latent)
        torch.testing.assert_close(vae.decoder(latent), expected)


@pytest.mark.parametrize(
    ("variant", "millions"), [("quality", 36.1), ("scratch", 51.3), ("patch", 73.9)]
)
def test_the_mappings_have_the_published_size(variant: str, millions: float) -> None:
    with torch.device("meta"):
        mapping = Mapping(dataclasses.replace(PAPER, mapping=variant))
    assert round(parameters(mapping) / 1e6, 1) == millions


@pytest.mark.parametrize(("variant", "blocks"), [("quality", 6), ("scratch", 9), ("patch", 11)])
def test_the_mappings_have_the_published_layers(variant: str, blocks: int) -> None:
    with torch.device("meta"):
        mapping = Mapping(dataclasses.replace(PAPER, mapping=variant))
    widths = [64, 128, 256, 512, 512]
    widen = [(layer.in_channels, layer.out_channels) for layer in mapping.widen]
    assert widen == list(itertools.pairwise(widths))
    narrow = [(layer.in_channels, layer.out_channels) for layer in mapping.narrow]
    assert narrow == [(o, i) for i, o in reversed(widen)]
    wide = [m for m in convolutions(mapping) if m.kernel_size == (3, 3) and m.in_channels == 512]
    # Two of every residual block, the last of widening, and two of narrowing.
    combining = [m for m in convolutions(mapping) if m.in_channels == 1025]
    assert len(wide) == 2 * blocks + 3
    assert len(combining) == (3 if variant == "patch" else 0)


def test_a_mapping_without_holes_is_the_published_chain() -> None:
    config = LatentConfig(vae_channels=4, mapping="quality", mapping_channels=16, trunk_blocks=2)
    mapping = drawn(Mapping(config))
    widths = [4, 8, 16, 16, 16]
    chain = nn.Sequential(
        *(
            layer
            for i, o in itertools.pairwise(widths)
            for layer in normed(nn.Conv2d(i, o, 3, 1, 1), o)
        ),
        Block(16),
        Block(16),
        *normed(nn.Conv2d(16, 16, 3, 1, 1), 16),
        *normed(nn.Conv2d(16, 16, 3, 1, 1), 16),
        *normed(nn.Conv2d(16, 8, 3, 1, 1), 8),
        nn.Conv2d(8, 4, 3, 1, 1),
    )
    latent = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = copied(chain, convolutions(mapping))(latent)
        found = mapping(latent, torch.ones(2, 1, 9, 7))
    torch.testing.assert_close(found, expected)


def dense_nonlocal(block: PartialNonlocal, features: Tensor, hole: Tensor) -> Tensor:
    """The partial non-local block with its whole map, as published: eq. 6 and 7."""
    batch, _, height, width = features.shape
    query = block.query(features).flatten(2).mT
    products = query @ block.key(features).flatten(2)
    weights = products.softmax(dim=2) * (1 - hole.flatten(2))
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-300)
    attended = weights @ block.value(features).flatten(2).mT
    attended = attended.mT.reshape(batch, -1, height, width)
    filled = block.blocks(block.output(attended))
    return (1 - hole) * features + hole * filled


@pytest.mark.parametrize("masked", ["some", "none", "all", "one photo of two"])
def test_the_partial_nonlocal_block_is_the_dense_formula(masked: str) -> None:
    block = drawn(PartialNonlocal(12, 10, 2))
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 12, 9, 11, generator=generator).double() * 2
    hole = (torch.rand(2, 1, 9, 11, generator=generator) < 0.3).double()
    if masked != "some":
        hole = torch.full_like(hole, float(masked != "none"))
    if masked == "one photo of two":
        hole[1] = 0
    with torch.no_grad():
        found = block(features, hole)
        expected = dense_nonlocal(block, features, hole)
        single = block.float()(features.float(), hole.float())
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(single, expected.float(), atol=2e-4, rtol=2e-4)


def test_what_lies_in_holes_does_not_reach_them() -> None:
    """Other holes' features: but for where a hole is asked about itself, none is a key."""
    block = drawn(PartialNonlocal(6, 6, 1))
    features = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    hole = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    hole[..., 2:4, 2:6] = 1
    other = features + hole * torch.randn_like(features)
    with torch.no_grad():
        query = block.query(features).flatten(2).mT
        assert not torch.allclose(block.query(other).flatten(2).mT, query)
        same = block(features, hole)
        changed = block(other, hole)
        block.query.weight.zero_()  # whoever asks, asks the same
        torch.testing.assert_close(block(other, hole) * hole, block(features, hole) * hole)
    assert not torch.allclose(same, changed)


def test_patches_are_copied_from_the_most_similar_ones() -> None:
    attention = drawn(PatchAttention(3, 2))
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 3, 8, 12, generator=generator).double()
    hole = torch.zeros(2, 1, 8, 12, dtype=torch.float64)
    hole[0, :, 2:4, 4:8] = 1
    hole[0, :, 6, 6] = 1  # a quarter of a patch is none
    hole[1, :, :4, 1:10] = 1  # with halves of patches beside it
    with torch.no_grad():
        found = attention(features, hole)
        x = attention.blocks(features)
        patches = F.unfold(x, 2, stride=2)
        share = F.unfold(hole, 2, stride=2).mean(dim=1)
        cosine = F.normalize(patches, dim=1).mT @ F.normalize(patches, dim=1)
        cosine = cosine.masked_fill(share[:, None, :] > 0.6, -1e9)
        best = cosine.argmax(dim=2)[:, None, :].expand_as(patches)
        copied_patches = F.fold(patches.gather(2, best), (8, 12), 2, stride=2)
        expected = attention.combine(torch.cat((features, copied_patches, hole), dim=1))
    torch.testing.assert_close(found, expected)


def test_discriminators_have_the_published_sizes() -> None:
    photo = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        fine, coarse = TwoScaleDiscriminator(3)(photo)
        latent = PatchDiscriminator(64)(torch.rand(1, 64, 64, 64))
    assert [(x.shape[1], x.shape[-1]) for x in fine] == [
        (64, 129),
        (128, 65),
        (256, 33),
        (512, 34),
        (1, 35),
    ]
    assert [x.shape[-1] for x in coarse] == [65, 33, 17, 18, 19]
    assert [x.shape[-1] for x in latent] == [33, 17, 9, 10, 11]


def test_the_spectral_norm_is_one_where_it_is_asked_for() -> None:
    judge = PatchDiscriminator(6, spectral=True)
    for layer in judge.layers:
        layer.train()
        for _ in range(100):  # each use takes a step of the power iteration
            weight = layer.weight.detach()
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("offset", range(4))
def test_a_hairline_is_a_hole_of_the_latent_at_every_offset(offset: int) -> None:
    size = Sizing(LatentConfig())
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 12 + offset, :] = 1
    _, hole = size.painted(torch.zeros(1, 3, 32, 32), mask)
    assert torch.equal(hole[0, 0, :, 0], torch.eye(8)[3])


def test_holes_are_white_before_they_are_encoded() -> None:
    size = Sizing(LatentConfig())
    photo = torch.rand(1, 3, 32, 32) * 2 - 1
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:9, 10:20] = 1
    white = torch.where(mask > 0, torch.ones(()), photo)
    torch.testing.assert_close(size.painted(photo, mask)[0], white)


def test_compact_is_small() -> None:
    model = Latent(dataclasses.replace(COMPACT, damage=None)).eval()
    assert parameters(model) < 12e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 256, 256), torch.zeros(1, 1, 256, 256))
    attention = 2 * (64 * 64) ** 2 * 2 * COMPACT.attention_channels
    # The counter leaves out the warp, an operator of this project.
    assert counter.get_total_flops() + attention < 60e9


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((1024, 768), (1024, 768)),
        ((6000, 4000), (1024, 684)),
        ((520, 6000), (88, 1024)),
        ((4, 6000), (12, 1024)),
        ((4, 4), (12, 12)),
    ],
)
def test_large_photos_are_translated_smaller(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert Sizing(COMPACT).of(*size) == expected


def test_a_photo_within_the_limit_comes_as_it_was_decoded() -> None:
    config = LatentConfig(vae_channels=4, mapping="quality", mapping_channels=8, limit=64)
    model = Latent(config).eval()
    photo, mask = torch.rand(2, 3, 33, 57) * 2 - 1, torch.zeros(2, 1, 33, 57)
    mask[..., 3:9, 20:40] = 1
    with torch.no_grad():
        painted, hole = model.size.painted(photo, mask)
        decoded = model.vae_clean.decoder(model.mapping(model.vae_old.encoder(painted), hole))
        restored = model(photo, mask)
    assert decoded.shape[-2:] == (36, 60)
    torch.testing.assert_close(restored, decoded[..., :33, :57], atol=1e-6, rtol=0)


def test_a_large_photo_keeps_its_detail_and_gets_the_change() -> None:
    """Where what is decoded is brighter by a constant, that is all that happens outside holes."""
    size = Sizing(LatentConfig(limit=64))
    generator = torch.Generator().manual_seed(1)
    photo = torch.rand(1, 3, 300, 200, generator=generator) - 0.5
    mask = torch.zeros(1, 1, 300, 200)
    mask[..., 100:140, 50:90] = 1
    restored = size.carried_over(size.reduced(photo) + 0.25, photo, mask)
    sound = (mask < 1).expand_as(photo)
    wanted = photo + 0.25
    assert (restored - wanted)[sound].abs().max() < 1e-5
    # In the hole nothing of the photo's detail is left: what was decoded is smooth.
    assert (restored - wanted)[~sound].std() > 0.2
    assert restored[..., 105:135, 55:85].diff(dim=-1).abs().mean() < 0.05


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_survive_json(preset: str) -> None:
    config = PRESETS[preset]
    values = config.to_dict()
    assert LatentConfig.from_dict(values) == config
    with pytest.raises(ValueError, match="unknown configuration fields: color"):
        LatentConfig.from_dict({**values, "color": 1})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mapping", "both", "mapping is 'both': one of"),
        ("trunk_blocks", 0, "trunk_blocks is 0: it must be at least 1"),
        ("limit", 1000, "limit is 1000: it must be a multiple of 32"),
    ],
)
def test_what_no_network_can_be_built_from_is_said(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LatentConfig(**{field: value})
