"""Training of latent translation: a VAE of old photos, one of clean ones, then the mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.latent import losses
from pikfix.systems.latent.networks import Latent, PatchDiscriminator, TwoScaleDiscriminator
from pikfix.systems.latent.networks.vae import REDUCTION
from pikfix.systems.latent.samples import LatentBatches, Sample, aged, clean, collated
from pikfix.training.config import OptimizerConfig
from pikfix.training.dataset import generator
from pikfix.training.degradation_fields import Array
from pikfix.training.errors import TrainingError
from pikfix.training.features import FeatureNet, load_feature_net
from pikfix.training.photo_store import PhotoStore
from pikfix.training.stage import Critic, Figures, Stage
from pikfix.training.stage_run import Material

_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
_VALIDATION_SEED = 20_200_914
_VALIDATION_SIDE = 256
_VALIDATION_COUNT = 50
_GRID_ROWS = 8

Outputs = dict[str, Tensor]
Drawer = Callable[[Array, np.random.Generator], Sample]


class Inputs(NamedTuple):
    """clean, aged: `[B, 3, S, S]`, (sRGB - 0.5) / 0.5; hole: `[B, 1, S, S]`; real: `[B]`."""

    clean: Tensor
    aged: Tensor
    hole: Tensor
    real: Tensor


class LatentStage(Stage):
    """A stage that trains one part of the network, against a critic of its pictures.

    Args:
        material: of the run.

    Raises:
        TrainingError: what it needs is missing or cannot be read.
    """

    network: Latent
    part: ClassVar[str]
    optimizer = OptimizerConfig(
        batch=8, beta1=0.5, warmup=100, clip=10.0, temperature_start=None, precision="fp32"
    )
    takes: Sequence[str] = ("feature_weights",)

    def __init__(self, material: Material) -> None:
        self.network = material.network
        self.photos = len(material.photos)
        self.features: FeatureNet | None = None
        if material.features is not None:
            self.features = load_feature_net(material.features, _TAPS)
        self.weights = {
            name: weight
            for name, weight in self.terms().items()
            if name != "perceptual" or self.features is not None
        }
        self.judge = self.discriminator()
        self.critics = [Critic("discriminator", self.judge, self.judged)]
        self.data = LatentBatches(
            material.photos,
            self.drawer(),
            self.old(material),
            crop=material.config.crop,
            batch=material.batch,
            seed=material.config.seed,
            rank=material.rank,
        )
        self.validation: list[Sample] = []
        self.measures = ()
        if material.validation is not None:
            side = min(_VALIDATION_SIDE, material.config.side // 32 * 32)
            self.validation = self._samples(material.validation, side)
            self.measures = self.figures

    figures: ClassVar[tuple[str, ...]]
    """What validation measures."""

    def terms(self) -> Mapping[str, float]:
        """The weights of all terms that it may have."""
        raise NotImplementedError

    def discriminator(self) -> nn.Module:
        """What judges its pictures."""
        return TwoScaleDiscriminator(3)

    def drawer(self) -> Drawer:
        """What makes a sample of a photo's window."""
        raise NotImplementedError

    def old(self, material: Material) -> PhotoStore | None:
        """Old photos to train with as well."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """Those of its part."""
        return list(self.network.get_submodule(self.part).parameters())

    def batch(self, raw: dict[str, Tensor]) -> Inputs:
        """Convert to floats, channels last."""
        last = torch.channels_last
        photo, twin, hole = (
            raw[name].float().div(255).contiguous(memory_format=last)
            for name in ("clean", "aged", "hole")
        )
        return Inputs(2 * photo - 1, 2 * twin - 1, hole, raw["real"].float() / 255)

    def pair(self, inputs: Inputs, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """What the discriminator is to tell apart: the truth, and what the network gives."""
        raise NotImplementedError

    def judged(self, critic: nn.Module, inputs: Inputs, outputs: Outputs) -> Tensor:
        """What the discriminator minimises."""
        real, fake = self.pair(inputs, outputs)
        return losses.told_apart(critic(real), critic(fake.detach()))

    def pictured(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        """The terms that compare pictures by networks."""
        real, fake = self.pair(inputs, outputs)
        seen = self.judge(fake)
        found = {
            "adversarial": losses.adversarial(seen),
            "matched": losses.matched(self.judge(real), seen),
        }
        if self.features is not None:
            net = self.features.to(fake.device)
            ours, truth = (net(x[:, -3:].float() / 2 + 0.5) for x in (fake, real))
            found["perceptual"] = losses.perceptual(ours, truth, relative=net.relative)
        return found

    def save(self, network: Any, path: Path, metadata: dict[str, str]) -> None:
        save_checkpoint(network, path, metadata, system="latent")

    def _samples(self, store: PhotoStore, side: int) -> list[Sample]:
        """The same at every validation: the middle of each photo."""
        found, draw = [], self.drawer()
        for index in range(min(len(store), _VALIDATION_COUNT)):
            photo = store[index]
            top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
            window = photo[top : top + side, left : left + side].astype(np.float32) / 255
            found.append(draw(window, generator(_VALIDATION_SEED, index, 0)))
        return found

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> Figures:
        """Measure on all validation samples."""
        assert isinstance(network, Latent)
        device = next(network.parameters()).device
        rows: list[dict[str, float]] = []
        pictures: list[Tensor] = []
        for sample in self.validation:
            inputs = self.batch({k: v.to(device) for k, v in collated([sample]).items()})
            row, shown = self.measure(network, inputs)
            rows.append(row)
            if len(pictures) < _GRID_ROWS:
                pictures.append(torch.cat([inputs.aged, shown, inputs.clean], dim=-1))
        means = {name: float(np.mean([row[name] for row in rows])) for name in self.measures}
        grid = torch.cat(pictures, dim=-2)[0].permute(1, 2, 0).add(1).mul(127.5).clamp(0, 255)
        return Figures(means, means["psnr"], grid.byte().cpu().numpy())

    def measure(self, network: Latent, inputs: Inputs) -> tuple[dict[str, float], Tensor]:
        """Figures of one sample, and the picture that the network gives."""
        raise NotImplementedError


class VaeStage(LatentStage):
    """A VAE learns to give a photo back from a latent of unit variance around its mean.

    Nothing but the KL term bounds the latents, as the noise has no scale of its own: their mean
    square is among the figures, and is to be looked at before a mapping is trained.
    """

    figures = ("psnr", "latent_square")

    def terms(self) -> Mapping[str, float]:
        return MappingProxyType(
            {"kl": 1.0, "values": 10.0, "adversarial": 1.0, "matched": 10.0, "perceptual": 10.0}
        )

    def forward(self, inputs: Inputs) -> Outputs:
        vae = self.network.get_submodule(self.part)
        mean = vae.get_submodule("encoder")(inputs.aged)
        noise = torch.randn_like(mean)
        return {"mean": mean, "decoded": vae.get_submodule("decoder")(mean + noise)}

    def pair(self, inputs: Inputs, outputs: Outputs) -> tuple[Tensor, Tensor]:
        return inputs.aged, outputs["decoded"]

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "kl": outputs["mean"].float().square().mean(),
            "values": F.l1_loss(outputs["decoded"].float(), inputs.aged),
            **self.pictured(inputs, outputs),
        }

    def measure(self, network: Latent, inputs: Inputs) -> tuple[dict[str, float], Tensor]:
        vae = network.get_submodule(self.part)
        mean = vae.get_submodule("encoder")(inputs.aged)
        decoded = vae.get_submodule("decoder")(mean)
        square = float(mean.float().square().mean())
        return {"psnr": psnr(decoded, inputs.aged), "latent_square": square}, decoded


class VaeClean(VaeStage):
    """The VAE of clean photos, whose latents the mapping aims at."""

    name = "vae_clean"
    part = "vae_clean"
    shown = ("values", "kl")

    def drawer(self) -> Drawer:
        return clean


class VaeOld(VaeStage):
    """The VAE of old and synthetic old photos, whose latents nobody is to tell apart.

    Every second sample is a real old photo where there are some. A critic of latents learns which
    are real, and the encoder to make the real ones look synthetic: those the mapping is trained on.
    """

    name = "vae_old"
    part = "vae_old"
    shown = ("values", "kl")
    takes = ("feature_weights", "old_photos")

    def __init__(self, material: Material) -> None:
        self.aligned = material.old is not None
        super().__init__(material)
        if self.aligned:
            if material.batch < 2:
                raise TrainingError(
                    "the latents of real and synthetic photos are compared within a batch: give "
                    "--batch 2 or more for each device"
                )
            channels = self.network.config.vae_channels
            self.latent_judge = PatchDiscriminator(channels)
            self.critics = [
                *self.critics,
                Critic("latent_discriminator", self.latent_judge, self.latents_judged),
            ]

    def terms(self) -> Mapping[str, float]:
        return {**super().terms(), **({"aligned": 1.0} if self.aligned else {})}

    def drawer(self) -> Drawer:
        return aged

    def old(self, material: Material) -> PhotoStore | None:
        return material.old

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        found = super().losses(inputs, outputs)
        if self.aligned:
            judgement = self.latent_judge(outputs["mean"])[-1]
            found["aligned"] = losses.of_kind((judgement - 1).square(), inputs.real)
        return found

    def latents_judged(self, critic: nn.Module, inputs: Inputs, outputs: Outputs) -> Tensor:
        """What the critic of latents minimises: 1 for synthetic photos, 0 for real ones."""
        judgement = critic(outputs["mean"].detach())[-1].float()
        synthetic = losses.of_kind((judgement - 1).square(), 1 - inputs.real)
        return (synthetic + losses.of_kind(judgement.square(), inputs.real)) / 2


class MappingStage(LatentStage):
    """The mapping learns to take the latents of aged photos to those of the same ones clean.

    Both VAEs stay as they are, and no noise is added.
    """

    name = "mapping"
    part = "mapping"
    shown = ("latents", "adversarial")
    figures = ("psnr", "input_psnr", "latent_error")

    def __init__(self, material: Material) -> None:
        begun = {line.split(" ")[0] for line in material.started_from}
        if "all" not in begun and not {"vae_old", "vae_clean"} <= begun:
            raise TrainingError(
                "a mapping is trained between trained VAEs: give --init vae_old=CHECKPOINT and "
                "--init vae_clean=CHECKPOINT, or one checkpoint that holds both"
            )
        super().__init__(material)

    def terms(self) -> Mapping[str, float]:
        return MappingProxyType(
            {"latents": 60.0, "adversarial": 1.0, "matched": 10.0, "perceptual": 10.0}
        )

    def discriminator(self) -> nn.Module:
        # It sees what came in as well. Where there are holes, its norms are held, as published.
        return TwoScaleDiscriminator(6, spectral=self.network.config.mapping != "quality")

    def drawer(self) -> Drawer:
        # Without a mask, nobody knows of holes.
        quality = self.network.config.mapping == "quality"
        return partial(aged, damaged=0.0) if quality else aged

    def forward(self, inputs: Inputs) -> Outputs:
        return self._translated(self.network, inputs)

    def pair(self, inputs: Inputs, outputs: Outputs) -> tuple[Tensor, Tensor]:
        return (
            torch.cat((inputs.aged, inputs.clean), dim=1),
            torch.cat((inputs.aged, outputs["decoded"].to(inputs.aged.dtype)), dim=1),
        )

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        return {
            "latents": F.l1_loss(outputs["mapped"].float(), outputs["target"].float()),
            **self.pictured(inputs, outputs),
        }

    def measure(self, network: Latent, inputs: Inputs) -> tuple[dict[str, float], Tensor]:
        outputs = self._translated(network, inputs)
        error = float(F.l1_loss(outputs["mapped"], outputs["target"]))
        before = psnr(inputs.aged, inputs.clean)
        figures = {"psnr": psnr(outputs["decoded"], inputs.clean), "input_psnr": before}
        return {**figures, "latent_error": error}, outputs["decoded"]

    @staticmethod
    def _translated(network: Latent, inputs: Inputs) -> Outputs:
        with torch.no_grad():
            latent = network.vae_old.encoder(inputs.aged)
            target = network.vae_clean.encoder(inputs.clean)
        mapped = network.mapping(latent, F.max_pool2d(inputs.hole, REDUCTION))
        return {"mapped": mapped, "target": target, "decoded": network.vae_clean.decoder(mapped)}


def psnr(picture: Tensor, truth: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    error = float((picture.float() - truth.float()).square().mean()) / 4
    return float(10 * np.log10(1 / max(error, 1e-10)))
