"""One update of all weights: forward, losses, backward, optimizer, average, discriminator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import nn

from pikfix.networks import PikFix
from pikfix.training import losses
from pikfix.training.augment import Inputs, prepare
from pikfix.training.average import Average
from pikfix.training.config import TrainConfig
from pikfix.training.dataset import Batch
from pikfix.training.objective import Objective, Outputs, TrainingModule
from pikfix.training.state import State


class Updater:
    """The weights, what optimises them, and their average.

    Args:
        fabric: launched.
        config: of the run.
        module: what is trained, on no device yet.
        discriminator: for the adversarial term, or None.
        objective: the losses; uses the same discriminator.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        module: TrainingModule,
        discriminator: nn.Module | None,
        objective: Objective,
    ) -> None:
        self.fabric = fabric
        self.config = config
        self.objective = objective
        memory = torch.channels_last
        self.raw = module.to(memory_format=memory)  # type: ignore[call-overload]
        trained = [p for p in self.raw.parameters() if p.requires_grad]
        self.module, self.optimizer = fabric.setup(self.raw, _adam(trained, config))
        self.average = Average(self.net, config.optimizer.ema)
        self.critic: nn.Module | None = None
        if discriminator is not None:
            discriminator.to(memory_format=memory)  # type: ignore[call-overload]
            self.critic, self.critic_optimizer = fabric.setup(
                discriminator, _adam(list(discriminator.parameters()), config)
            )
        self.raw_critic = discriminator

    @property
    def net(self) -> PikFix:
        """The network that is trained."""
        net: PikFix = self.raw.net
        return net

    def state(self) -> State:
        """Weights, average and optimizers."""
        state: State = {
            "module": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.model.state_dict(),
            "average_updates": self.average.updates,
        }
        if self.raw_critic is not None:
            state["discriminator"] = self.raw_critic.state_dict()
            state["discriminator_optimizer"] = self.critic_optimizer.state_dict()
        return state

    def restore(self, state: State) -> None:
        """Continue where `state` was taken."""
        self.raw.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["average_updates"]
        if self.raw_critic is not None:
            self.raw_critic.load_state_dict(state["discriminator"])
            self.critic_optimizer.load_state_dict(state["discriminator_optimizer"])

    def __call__(
        self, batch: Batch, step: int, rate: float, temperature: float
    ) -> tuple[dict[str, float], bool]:
        """Update all weights once, unless a gradient is not finite.

        Args:
            batch: on the device.
            step: of the run; with seed and rank it decides everything random.
            rate: learning rate.
            temperature: of the correlation.

        Returns:
            The values of the terms, the total and the gradient's norm; and whether the weights
            were updated: the first process's finding, so that all of them do the same.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.similarity.temperature = temperature
        # Dropout and the like depend on (seed, step, rank) alone: nothing to store for a resume.
        mixed = (config.seed * 1_000_003 + step) * 1_009 + self.fabric.global_rank
        torch.manual_seed(mixed % (1 << 63))

        inputs = _channels_last(prepare(batch))
        outputs = self.module(inputs.photo_l, inputs.truth_lab[:, :1], inputs.reference_lab)
        outputs = Outputs(*outputs)
        with self.fabric.autocast(), _frozen(self.raw_critic):
            terms = self.objective.terms(inputs, outputs)
        total = self.objective.total(terms)
        self.fabric.backward(total)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip or math.inf)
        finite = agree(self.fabric, bool(torch.isfinite(norm)) and bool(torch.isfinite(total)))
        values = {name: float(term.detach()) for name, term in terms.items()}
        values |= {"total": float(total.detach()), "gradient_norm": float(norm)}
        if finite:
            self.optimizer.step()
            self.average.update(self.net)
            if self.critic is not None and outputs.ab is not None:
                values["discriminator"] = self._criticise(inputs, outputs, rate)
        self.optimizer.zero_grad(set_to_none=True)
        return values, finite

    def _criticise(self, inputs: Inputs, outputs: Outputs, rate: float) -> float:
        """One update of the discriminator."""
        assert self.critic is not None and outputs.ab is not None
        for group in self.critic_optimizer.param_groups:
            group["lr"] = rate
        fake = torch.cat((inputs.truth_lab[:, :1], outputs.ab.detach()), dim=1)
        # One pass over both, so that batch statistics do not tell them apart.
        answers = self.critic(torch.cat((inputs.truth_lab, fake)))
        loss = losses.discriminator_loss(*answers.chunk(2))
        self.fabric.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 10.0)
        if agree(self.fabric, bool(torch.isfinite(norm))):
            self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def agree(fabric: Fabric, decision: bool) -> bool:
    """The first process's decision, so that all of them do the same."""
    if fabric.world_size == 1:
        return decision
    return bool(fabric.broadcast(decision))


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """Without gradients to the module's parameters: the generator's step needs none."""
    if module is None:
        yield
        return
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _adam(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    options = config.optimizer
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=betas, weight_decay=options.weight_decay
    )


def _channels_last(inputs: Inputs) -> Inputs:
    last = torch.channels_last
    return inputs._replace(
        photo_l=inputs.photo_l.contiguous(memory_format=last),
        truth_lab=inputs.truth_lab.contiguous(memory_format=last),
    )
