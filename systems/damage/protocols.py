"""How well damage is found and filled, on photos that are damaged in known places."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from pikfix.evaluation import baselines
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.metrics import psnr
from pikfix.evaluation.pictures import centre_crop, split_lab
from pikfix.evaluation.protocol import Measured, Photo, Protocol
from pikfix.systems.damage.networks import Damage, smoothly_filled
from pikfix.systems.damage.samples import SampleConfig, draw
from pikfix.training.degradation_fields import Array

FALSE_POSITIVES = 0.01
_TRIES = 20


class DamageProtocol(Protocol):
    """Area under the ROC curve, recall at 1 % false positives, and the error that is left."""

    name = "damage"
    summary = "damage in known places: found, filled, and sound photos left alone"

    def measure(self, model: Damage, photo: Photo, rng: np.random.Generator) -> Measured:
        clean = ((split_lab(centre_crop(photo.rgb))[0][0] + 1) / 2).clamp(0, 1).numpy()
        # No stamps: they are not at hand everywhere. Nothing after the damage: it has a truth.
        config = SampleConfig(damaged=1.0, later=0.0)
        sample = draw(clean.astype(np.float32), rng, config)
        for _ in range(_TRIES):
            if sample.damaged.any():
                break
            sample = draw(clean.astype(np.float32), rng, config)
        else:
            raise EvaluationError(f"no damage shows on {photo.path.name}")
        photo_l, truth_l = (
            _scaled(x).to(self.setting.device) for x in (sample.photo, sample.truth)
        )
        damaged = torch.from_numpy(sample.damaged) > 0
        judged = torch.from_numpy(sample.judged) > 0
        probability = model.probability(photo_l)[0, 0].float().cpu()
        filled, mask = (tensor.float().cpu() for tensor in model(photo_l))
        figures = {"model": _found(probability[judged], damaged[judged])}
        smooth = smoothly_filled(photo_l, mask.to(photo_l.device).sign()).float().cpu()
        for name, picture in (("model", filled), ("smooth", smooth), ("input", photo_l.cpu())):
            light, truth = ((p[0] + 1) / 2 for p in (picture, truth_l.cpu()))
            figures.setdefault(name, {})["psnr"] = psnr(light, truth)
        sound = model(truth_l)[1]
        figures["clean_input"] = {"masked_share": float((sound > 0).float().mean())}
        pictures = {
            "input": photo_l.cpu()[0],
            "model": filled[0],
            "mask": 2 * mask[0] - 1,
            "truth": truth_l.cpu()[0],
        }
        return Measured(figures, {k: baselines.grey(v) for k, v in pictures.items()}, [])


def _found(probability: Tensor, damaged: Tensor) -> dict[str, float]:
    """How well a probability tells damaged pixels from sound ones."""
    threshold = torch.quantile(probability[~damaged].double(), 1 - FALSE_POSITIVES)
    return {
        "auc": float(binary_auroc(probability, damaged.long())),
        "recall": float((probability[damaged] > threshold).float().mean()),
    }


def _scaled(light: Array) -> Tensor:
    return torch.from_numpy(light)[None, None] * 2 - 1
