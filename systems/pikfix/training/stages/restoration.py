"""Restoration: a damaged luminance towards the clean one (Pik-Fix, sec. 3.1, 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from pikfix.evaluation.metrics import psnr
from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.training.augment import Inputs
from pikfix.systems.pikfix.training.stages.base import Outputs, PikFixStage
from pikfix.systems.pikfix.training.validation import Sample, gray
from pikfix.training import losses
from pikfix.training.features import FeatureNet


class Restoration(PikFixStage):
    """Trains all of restoration, the tone at its end included."""

    name = "restoration"
    parts = ("restoration",)
    terms = ("luminance", "detail", "perceptual", "structure")
    feature_terms = ("perceptual",)
    figures = ("restored_psnr", "degraded_psnr", "clean_psnr")

    def compute(self, inputs: Inputs, known: Outputs) -> Outputs:
        return {"restored_l": self.network.restoration(inputs.photo_l)}

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        weights, terms = self.weights, {}
        restored, clean = outputs["restored_l"], inputs.truth_lab[:, :1]
        if weights["luminance"]:
            terms["luminance"] = (restored - clean).abs().mean()
        if weights["detail"]:
            terms["detail"] = losses.detail(restored, clean)
        if weights["perceptual"] and self.features is not None:
            terms["perceptual"] = _perceptual(restored, clean, self.features)
        if weights["structure"]:
            terms["structure"] = losses.dissimilarity((restored + 1) / 2, (clean + 1) / 2)
        return terms

    def measure(self, network: PikFix, sample: Sample) -> tuple[dict[str, float], list[Tensor]]:
        degraded, clean = sample.nearest.photo_l, sample.nearest.truth_lab[:, :1]
        restored = self._restore(network, degraded)
        row = {
            "restored_psnr": psnr(restored[0], clean[0], peak=2),
            "degraded_psnr": psnr(degraded[0], clean[0], peak=2),
            "clean_psnr": psnr(self._restore(network, clean)[0], clean[0], peak=2),
        }
        return row, [gray(restored)]

    def _restore(self, network: PikFix, photo_l: Tensor) -> Tensor:
        assert self.validation is not None
        with self.validation.autocast():
            restored: Tensor = network.restoration(photo_l)
        return restored.float().clamp(-1, 1)


def _perceptual(restored_l: Tensor, clean_l: Tensor, net: FeatureNet) -> Tensor:
    with torch.no_grad():
        truth = net(_grey(clean_l))
    return losses.perceptual(net(_grey(restored_l)), truth, net.relative)


def _grey(luminance: Tensor) -> Tensor:
    """Scaled L `[B, 1, H, W]` as three equal channels in [0, 1], not clipped."""
    return ((luminance + 1) / 2).expand(-1, 3, -1, -1)
