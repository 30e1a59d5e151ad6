"""Similarity and colorization: a photo's chroma after references (Pik-Fix, sec. 3.2 to 3.5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pikfix.evaluation.metrics import colorfulness, psnr
from pikfix.layers.color import lab_to_rgb
from pikfix.systems.pikfix.networks import PikFix, to_working
from pikfix.systems.pikfix.training.augment import Inputs
from pikfix.systems.pikfix.training.batches import NEAR, SIBLING
from pikfix.systems.pikfix.training.stages.base import Material, Outputs, PikFixStage
from pikfix.systems.pikfix.training.validation import Sample, gray
from pikfix.training import losses
from pikfix.training.features import FeatureNet
from pikfix.training.stage import Critic


class Colors(PikFixStage):
    """Trains similarity and colorization, or one of them."""

    name = "colors"
    parts = ("similarity", "colorization")
    terms = ("chroma", "histogram", "adversarial", "structure", "distillation")
    feature_terms = ("distillation",)
    figures = (
        *("psnr", "psnr_one_reference", "psnr_sibling", "psnr_grey", "psnr_ab"),
        *("colorfulness", "colorfulness_truth"),
    )

    def __init__(self, material: Material) -> None:
        super().__init__(material)
        backbone = getattr(self.network.similarity, "backbone", None)
        trained = self.config.parts
        if self.weights["distillation"] and self.features and backbone and "similarity" in trained:
            channels = backbone.channels[-1]
            self.extras = {"head": nn.Conv2d(channels, self.features.channels, 1)}
        if self.weights["adversarial"] and "colorization" in trained:
            discriminator = losses.PatchDiscriminator(self.config.loss.discriminator_width)
            self.critics = (Critic("discriminator", discriminator, _discriminate),)

    def compute(self, inputs: Inputs, known: Outputs) -> Outputs:
        source = inputs.truth_lab[:, :1]
        if self.config.color_input != "clean":
            restored = known.get("restored_l")
            if restored is None:
                restored = self.network.restoration(inputs.photo_l)
            source = restored if self.config.color_input == "joint" else restored.detach()
        working_l = to_working(source)
        if not self.extras:
            return {"ab": self._ab(self.network, working_l, inputs.reference_lab)}
        with _deepest(self.network.similarity.backbone) as features:
            ab = self._ab(self.network, working_l, inputs.reference_lab)
        photo, reference = features
        # References follow each other photo by photo.
        first = reference[:: len(reference) // len(photo)]
        return {"ab": ab, "semantic": self.extras["head"](torch.cat((photo, first)))}

    @staticmethod
    def _ab(network: PikFix, working_l: Tensor, reference_lab: Tensor) -> Tensor:
        warped, confidence = network.similarity(working_l, reference_lab)
        ab: Tensor = network.colorization(working_l, warped, confidence)
        return ab

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        weights, terms = self.weights, {}
        clean_l, truth_ab, ab = inputs.truth_lab[:, :1], inputs.truth_lab[:, 1:], outputs["ab"]
        if weights["chroma"]:
            terms["chroma"] = losses.chroma_l1(ab, truth_ab, self.config.loss.chroma_emphasis)
        if weights["histogram"]:
            target = self._histogram_target(inputs)
            terms["histogram"] = losses.earth_movers(losses.histogram(ab), target)
        for critic in self.critics:
            answer = critic.module(torch.cat((clean_l, ab), dim=1))
            terms["adversarial"] = losses.generator_loss(answer)
        if weights["structure"]:
            # The luminance is the truth's own in both, as the metric of colorization has it.
            with torch.autocast(ab.device.type, enabled=False):
                colorized = lab_to_rgb(torch.cat((clean_l, ab.float()), dim=1))
                truth = lab_to_rgb(inputs.truth_lab)
            terms["structure"] = losses.dissimilarity(colorized, truth)
        if "semantic" in outputs and self.features is not None:
            terms["distillation"] = _distillation(inputs, outputs["semantic"], self.features)
        return terms

    def _histogram_target(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            truth = losses.histogram(inputs.truth_lab[:, 1:])
            if self.config.loss.histogram_target == "truth":
                return truth
            near = inputs.kinds == NEAR
            # A photo next to another crop of itself aims at its own colours.
            useful = near.any(dim=1) & ~(inputs.kinds == SIBLING).any(dim=1)
            if not bool(useful.any()):
                return truth
            batch, count = inputs.kinds.shape
            reference = losses.histogram(inputs.reference_lab[:, :, 1:].flatten(0, 1))
            reference = reference.reshape(batch, count, *reference.shape[1:])
            weight = near.float()[..., None, None]
            mean = (reference * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
            return torch.where(useful[:, None, None], mean, truth)

    def measure(self, network: PikFix, sample: Sample) -> tuple[dict[str, float], list[Tensor]]:
        nearest, sibling = sample.nearest, sample.sibling.reference_lab
        truth, clean_l = nearest.truth_rgb, nearest.truth_lab[:, :1]
        row = {
            "psnr_grey": psnr(gray(clean_l)[0], truth[0]),
            "colorfulness_truth": colorfulness(truth[0]),
        }
        tiles = []
        assert self.validation is not None
        for name, references in (
            ("psnr", nearest.reference_lab),
            ("psnr_one_reference", nearest.reference_lab[:, :1]),
            ("psnr_sibling", sibling),
        ):
            with self.validation.autocast():
                ab = self._ab(network, clean_l, references)
            ab = ab.float()
            rgb = lab_to_rgb(torch.cat((clean_l, ab), dim=1))
            row[name] = psnr(rgb[0], truth[0])
            if name == "psnr":
                row["psnr_ab"] = psnr(ab[0], nearest.truth_lab[0, 1:], peak=2)
                row["colorfulness"] = colorfulness(rgb[0])
            if name != "psnr_one_reference":
                tiles += [lab_to_rgb(references[:, 0]), rgb]
        return row, tiles


def _discriminate(critic: nn.Module, inputs: Inputs, outputs: Outputs) -> Tensor:
    fake = torch.cat((inputs.truth_lab[:, :1], outputs["ab"].detach()), dim=1)
    # One pass over both, so that batch statistics do not tell them apart.
    answers: Tensor = critic(torch.cat((inputs.truth_lab, fake)))
    return losses.discriminator_loss(*answers.chunk(2))


def _distillation(inputs: Inputs, semantic: Tensor, net: FeatureNet) -> Tensor:
    with torch.no_grad():
        reference = lab_to_rgb(inputs.reference_lab[:, 0])
        teacher = net(torch.cat((inputs.truth_rgb, reference)))[-1]
    return losses.distillation(semantic, teacher)


@contextmanager
def _deepest(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the deepest features of every call of the similarity backbone."""
    kept: list[Tensor] = []
    hook = backbone.register_forward_hook(lambda _, __, features: kept.append(features[-1]))
    try:
        yield kept
    finally:
        hook.remove()
