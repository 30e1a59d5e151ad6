"""The trained module and its objective: one forward pass, all losses by name."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pikfix.networks import PikFix, lab_to_rgb, to_working
from pikfix.training import losses
from pikfix.training.augment import Inputs
from pikfix.training.config import PARTS, TONE, LossConfig, TrainConfig
from pikfix.training.dataset import NEAR, SIBLING
from pikfix.training.features import FeatureNet

Terms = dict[str, Tensor]


class Outputs(NamedTuple):
    """What one training forward pass computes; None for what the configuration leaves out.

    restored_l: `[B, 1, S, S]`.
    ab: `[B, 2, S, S]`.
    semantic: the distillation head's answer for photos and first references, `[2B, C, h, w]`.
    """

    restored_l: Tensor | None
    ab: Tensor | None
    semantic: Tensor | None


class TrainingModule(nn.Module):
    """PikFix together with what exists in training only (the distillation head).

    Sub-nets that are not trained are frozen and keep their batch statistics.
    """

    def __init__(self, net: PikFix, config: TrainConfig, teacher_channels: int | None) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.head: nn.Conv2d | None = None
        backbone = getattr(net.similarity, "backbone", None)
        if teacher_channels and backbone is not None and "similarity" in config.parts:
            self.head = nn.Conv2d(backbone.channels[-1], teacher_channels, 1)
            backbone.register_forward_hook(self._keep_deepest)
        self._deepest: list[Tensor] = []
        for name in self._kept():
            net.get_submodule(name).requires_grad_(False)
        if TONE in config.parts:
            net.get_submodule("restoration.tone").requires_grad_(True)

    def train(self, mode: bool = True) -> TrainingModule:
        """As in `nn.Module`, but frozen sub-nets stay in evaluation mode."""
        super().train(mode)
        for name in self._kept():
            # Restoration has no statistics; it trains unclamped, be it by its last step alone.
            if name != "restoration" or not self.config.trains_restoration:
                self.net.get_submodule(name).eval()
        return self

    def _kept(self) -> list[str]:
        return [name for name in PARTS if name not in self.config.parts]

    def forward(self, photo_l: Tensor, clean_l: Tensor, reference_lab: Tensor) -> Outputs:
        """Restore and colorize as the configuration says; tensors as in `Inputs`."""
        config = self.config
        restored: Tensor | None = None
        colored = config.trains_color
        if config.trains_restoration or (colored and config.color_input != "clean"):
            restored = self.net.restoration(photo_l)
        if not colored:
            return Outputs(restored, None, None)
        working_l = to_working(clean_l)
        if restored is not None and config.color_input != "clean":
            source = restored if config.color_input == "joint" else restored.detach()
            working_l = to_working(source)
        self._deepest.clear()
        warped, confidence = self.net.similarity(working_l, reference_lab)
        ab = self.net.colorization(working_l, warped, confidence)
        semantic = None
        if self.head is not None:
            photo, reference = self._deepest
            # References follow each other photo by photo.
            first = reference[:: len(reference) // len(photo)]
            semantic = self.head(torch.cat((photo, first)))
            self._deepest.clear()
        return Outputs(restored if config.trains_restoration else None, ab, semantic)

    def _keep_deepest(self, _: nn.Module, __: object, features: list[Tensor]) -> None:
        if self.training:
            self._deepest.append(features[-1])


class Objective:
    """Computes every term of the objective that has a weight.

    Args:
        config: the weights.
        features: a frozen feature net, for the perceptual and distillation terms; without one
            they are left out.
        discriminator: for the adversarial term; without one it is left out.
    """

    def __init__(
        self, config: LossConfig, features: FeatureNet | None, discriminator: nn.Module | None
    ) -> None:
        self.config = config
        self.features = features
        self.discriminator = discriminator

    def terms(self, inputs: Inputs, outputs: Outputs) -> Terms:
        """Unweighted terms; each is a scalar with a gradient."""
        config = self.config
        terms: Terms = {}
        clean_l, truth_ab = inputs.truth_lab[:, :1], inputs.truth_lab[:, 1:]
        if outputs.restored_l is not None:
            if config.luminance:
                terms["luminance"] = (outputs.restored_l - clean_l).abs().mean()
            if config.detail:
                terms["detail"] = losses.detail(outputs.restored_l, clean_l)
            if config.perceptual and self.features is not None:
                terms["perceptual"] = self._perceptual(outputs.restored_l, clean_l, self.features)
        if outputs.ab is not None:
            if config.chroma:
                terms["chroma"] = losses.chroma_l1(outputs.ab, truth_ab, config.chroma_emphasis)
            if config.histogram:
                target = self._histogram_target(inputs)
                terms["histogram"] = losses.earth_movers(losses.histogram(outputs.ab), target)
            if config.adversarial and self.discriminator is not None:
                fake = torch.cat((clean_l, outputs.ab), dim=1)
                terms["adversarial"] = losses.generator_loss(self.discriminator(fake))
        if config.structure:
            terms["structure"] = self._structure(inputs, outputs)
        if outputs.semantic is not None and self.features is not None:
            terms["distillation"] = self._distillation(inputs, outputs.semantic, self.features)
        return terms

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum."""
        return torch.stack(
            [getattr(self.config, name) * term for name, term in terms.items()]
        ).sum()

    @staticmethod
    def _perceptual(restored_l: Tensor, clean_l: Tensor, net: FeatureNet) -> Tensor:
        with torch.no_grad():
            truth = net(_grey(clean_l))
        return losses.perceptual(net(_grey(restored_l)), truth, net.relative)

    def _histogram_target(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            truth = losses.histogram(inputs.truth_lab[:, 1:])
            if self.config.histogram_target == "truth":
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

    @staticmethod
    def _structure(inputs: Inputs, outputs: Outputs) -> Tensor:
        clean_l = inputs.truth_lab[:, :1]
        terms = []
        if outputs.restored_l is not None:
            terms.append(losses.dissimilarity((outputs.restored_l + 1) / 2, (clean_l + 1) / 2))
        if outputs.ab is not None:
            # The luminance is the truth's own in both, as the metric of colorization has it.
            with torch.autocast(outputs.ab.device.type, enabled=False):
                colorized = lab_to_rgb(torch.cat((clean_l, outputs.ab.float()), dim=1))
                truth = lab_to_rgb(inputs.truth_lab)
            terms.append(losses.dissimilarity(colorized, truth))
        return torch.stack(terms).sum()

    @staticmethod
    def _distillation(inputs: Inputs, semantic: Tensor, net: FeatureNet) -> Tensor:
        with torch.no_grad():
            reference = lab_to_rgb(inputs.reference_lab[:, 0])
            teacher = net(torch.cat((inputs.truth_rgb, reference)))[-1]
        return losses.distillation(semantic, teacher)


def _grey(luminance: Tensor) -> Tensor:
    """Scaled L `[B, 1, H, W]` as three equal channels in [0, 1], not clipped."""
    return ((luminance + 1) / 2).expand(-1, 3, -1, -1)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module behind wrappers for devices and precision."""
    while hasattr(module, "module"):
        module = cast(nn.Module, module.module)
    return module
