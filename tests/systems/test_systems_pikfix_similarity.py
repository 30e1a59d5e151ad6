from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from pikfix.systems.pikfix.networks import PikFix, PikFixConfig
from pikfix.systems.pikfix.networks.similarity import Similarity


def pictures(height: int = 64, width: int = 96, references: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    photo = torch.rand(1, 1, height, width, generator=generator) * 2 - 1
    lab = torch.rand(1, references, 3, height, width, generator=generator) * 1.6 - 0.8
    return photo, lab


def test_shapes_sums_and_ranges(tiny: PikFix) -> None:
    photo, lab = pictures(references=2)
    warped, confidence = tiny.similarity(photo, lab)
    bins = tiny.config.bins
    for scale, (w, c) in enumerate(zip(warped, confidence, strict=True)):
        size = (64 >> scale + 2, 96 >> scale + 2)
        assert w.shape == (1, 2 * bins, *size)
        assert c.shape == (1, 1, *size)
        sums = w.unflatten(1, (2, bins)).sum(2)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert c.abs().max() <= 1 + 1e-5


def test_a_photo_matched_with_itself_gets_its_own_colours(tiny: PikFix) -> None:
    _, lab = pictures()
    tiny.similarity.temperature = 1e-4
    warped, confidence = tiny.similarity(lab[:, 0, :1], lab)
    torch.testing.assert_close(confidence[0], torch.ones_like(confidence[0]))
    ab = lab[:, 0, 1:]
    centres = tiny.similarity.histogram.centres
    for channel in range(2):
        distance = ab[:, channel, None] - centres[channel].view(1, -1, 1, 1)
        own = torch.softmax(-(distance**2) / (2 * tiny.config.sigma**2), dim=1)
        own = F.avg_pool2d(own, 4)
        part = warped[0].unflatten(1, (2, -1))[:, channel]
        torch.testing.assert_close(part, own, atol=1e-4, rtol=0)


def test_the_order_of_references_does_not_matter(tiny: PikFix) -> None:
    photo, lab = pictures(references=3)
    first = tiny.similarity(photo, lab)
    second = tiny.similarity(photo, lab[:, [2, 0, 1]])
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_references_compete_place_by_place(tiny: PikFix) -> None:
    """The left half of the photo is in one reference, the right half in another."""
    photo, lab = pictures(64, 128)
    other = lab.flip(-1).contiguous()
    both = torch.cat((lab, other), dim=1)
    tiny.similarity.temperature = 1e-3
    alone = tiny.similarity(photo, lab)[1][0]
    together = tiny.similarity(photo, both)[1][0]
    # More keys: the best correlation of a place can only be found among more candidates.
    assert together.mean() > alone.mean()


def test_shares_follow_the_colours(tiny: PikFix) -> None:
    """At a low temperature a photo's colours come from the reference that it is a part of."""
    _, lab = pictures(64, 96)
    _, other = pictures(64, 96, references=3)
    tiny.similarity.temperature = 1e-4
    references = torch.cat((other[:, 1:], lab), dim=1)
    warped, confidence, share = tiny.similarity.with_share(lab[:, 0, :1], references)
    torch.testing.assert_close(share, torch.tensor([[0.0, 0.0, 1.0]]), atol=1e-3, rtol=0)
    twice = references[:, [2, 0, 2, 1]]
    torch.testing.assert_close(
        tiny.similarity.with_share(lab[:, 0, :1], twice)[2],
        torch.tensor([[0.5, 0.0, 0.5, 0.0]]),
        atol=1e-3,
        rtol=0,
    )
    plain = tiny.similarity(lab[:, 0, :1], references)
    for a, b in zip((*warped, *confidence), (*plain[0], *plain[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["none", "single", "multi"])
def test_shares_sum_to_one(tiny_config: PikFixConfig, mode: str) -> None:
    torch.manual_seed(0)
    similarity = Similarity(dataclasses.replace(tiny_config, similarity=mode)).eval()
    photo, lab = pictures(references=3)
    pair = (photo.repeat(2, 1, 1, 1), torch.cat((lab, lab.flip(1))))
    share = similarity.with_share(*pair)[2]
    assert share.shape == (2, 3) and share.min() >= 0
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(share[1], share[0].flip(0))


def test_one_position_is_answered(tiny: PikFix) -> None:
    photo, lab = pictures(32, 32)
    warped, confidence = tiny.similarity(photo, lab)
    assert all(t.isfinite().all() for t in (*warped, *confidence))


@pytest.mark.parametrize("mode", ["none", "single", "multi"])
@pytest.mark.parametrize(
    "fusion",
    ["input_ab", "multi_scale_ab", "single_scale_histogram", "multi_scale_histogram"],
)
def test_every_ablation_runs_and_uses_its_reference(
    tiny_config: PikFixConfig, mode: str, fusion: str
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_config, similarity=mode, fusion=fusion)
    model = PikFix(config).eval()
    torch.nn.init.normal_(model.colorization.output.weight)
    photo, lab = pictures(references=2)
    out = model(photo, lab)
    assert out.ab.shape == (1, 2, 64, 96)
    assert out.warped[2].shape == (1, config.warped_channels, 4, 6)
    recoloured = lab.clone()
    recoloured[:, :, 1:] *= -1
    assert not torch.allclose(model(photo, recoloured).ab, out.ab)
    confident = mode != "none"
    assert bool(out.confidence[0].any()) == confident


def test_a_frozen_backbone_does_not_move(tiny_config: PikFixConfig) -> None:
    similarity = Similarity(dataclasses.replace(tiny_config, backbone_frozen=True)).train()
    before = {k: v.clone() for k, v in similarity.backbone.state_dict().items()}
    warped, _ = similarity(*pictures())
    warped[0].square().sum().backward()
    assert all(p.grad is None for p in similarity.backbone.parameters())
    assert similarity.filter.weight.grad is not None
    for name, tensor in similarity.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_reach_every_parameter(tiny: PikFix) -> None:
    photo, lab = pictures()
    tiny.train()
    tiny.similarity.temperature = 0.1
    out = tiny(photo, lab)
    (out.ab.square().sum() + out.restored_l.square().sum()).backward()
    trained = [(n, p) for n, p in tiny.named_parameters() if not n.startswith("damage.")]
    silent = [n for n, p in trained if p.grad is None or not p.grad.any()]
    assert silent == []
