"""One update of all weights: forward, losses, backward, optimizer, average, critics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from pikfix.training.average import running_average
from pikfix.training.config import OptimizerConfig
from pikfix.training.stage import Critic, Stage
from pikfix.training.state import State


class TrainedModule(nn.Module):
    """The trained part of a stage, to place on devices; the rest of the network is frozen."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        trained = stage.parameters()
        stage.network.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.net = stage.network
        for name, module in stage.extras.items():
            self.add_module(name, module)
        self._stage = stage

    def train(self, mode: bool = True) -> TrainedModule:
        """As in `nn.Module`, but what is frozen as a whole keeps its batch statistics."""
        super().train(mode)
        for module in self.net.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    def forward(self, inputs: Any) -> Any:
        return self._stage.forward(inputs)


class Updater:
    """The weights, what optimises them, and their average.

    Args:
        fabric: launched.
        stage: what is trained, on no device yet.
        options: of the optimizer.
        seed: of everything random in a step.
    """

    def __init__(self, fabric: Fabric, stage: Stage, options: OptimizerConfig, seed: int) -> None:
        self.fabric = fabric
        self.stage = stage
        self.options = options
        self.seed = seed
        memory = torch.channels_last
        self.raw = TrainedModule(stage).to(memory_format=memory)  # type: ignore[call-overload]
        trained = [p for p in self.raw.parameters() if p.requires_grad]
        self.module, self.optimizer = fabric.setup(self.raw, _adam(trained, options))
        self.average = running_average(stage.network, options.ema)
        self.critics: list[tuple[Critic, nn.Module, torch.optim.Optimizer]] = []
        for critic in stage.critics:
            critic.module.to(memory_format=memory)  # type: ignore[call-overload]
            optimizer = _adam(critic.module.parameters(), options)
            self.critics.append((critic, *fabric.setup(critic.module, optimizer)))

    def state(self) -> State:
        """Weights, average and optimizers."""
        state: State = {
            "module": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict(),
            "average_updates": int(self.average.n_averaged) - 1,
        }
        for critic, _, optimizer in self.critics:
            state[critic.name] = critic.module.state_dict()
            state[f"{critic.name}_optimizer"] = optimizer.state_dict()
        return state

    def restore(self, state: State) -> None:
        """Continue where `state` was taken."""
        self.raw.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.fill_(state["average_updates"] + 1)
        for critic, _, optimizer in self.critics:
            critic.module.load_state_dict(state[critic.name])
            optimizer.load_state_dict(state[f"{critic.name}_optimizer"])

    def __call__(self, batch: Any, step: int, rate: float) -> tuple[dict[str, float], bool]:
        """Update all weights once, unless a gradient is not finite.

        Args:
            batch: on the device.
            step: of the run; with seed and rank it decides everything random.
            rate: learning rate.

        Returns:
            The values of the terms, the total and the gradient's norm; and whether the weights
            were updated: the first process's finding, so that all of them do the same.
        """
        _set_rate(self.optimizer, rate)
        # Dropout and the like depend on (seed, step, rank) alone: nothing to store for a resume.
        mixed = (self.seed * 1_000_003 + step) * 1_009 + self.fabric.global_rank
        torch.manual_seed(mixed % (1 << 63))

        inputs = self.stage.batch(batch)
        outputs = self.module(inputs)
        with self.fabric.autocast(), _frozen(self.stage.critics):
            terms = self.stage.losses(inputs, outputs)
        weights = self.stage.weights
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        self.fabric.backward(total)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.options.clip or math.inf)
        finite = agree(self.fabric, bool(torch.isfinite(norm)) and bool(torch.isfinite(total)))
        values = {name: float(term.detach()) for name, term in terms.items()}
        values |= {"total": float(total.detach()), "gradient_norm": float(norm)}
        if finite:
            self.optimizer.step()
            self.average.update_parameters(self.stage.network)
            for critic, module, optimizer in self.critics:
                _set_rate(optimizer, rate)
                loss = critic.loss(module, inputs, outputs)
                self.fabric.backward(loss)
                norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
                if agree(self.fabric, bool(torch.isfinite(norm))):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                values[critic.name] = float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        return values, finite


def agree(fabric: Fabric, decision: bool) -> bool:
    """The first process's decision, so that all of them do the same."""
    if fabric.world_size == 1:
        return decision
    return bool(fabric.broadcast(decision))


@contextmanager
def _frozen(critics: Iterable[Critic]) -> Iterator[None]:
    """Without gradients to the critics' parameters: the generator's step needs none."""
    for critic in critics:
        critic.module.requires_grad_(False)
    try:
        yield
    finally:
        for critic in critics:
            critic.module.requires_grad_(True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _adam(parameters: Iterable[nn.Parameter], options: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=betas, weight_decay=options.weight_decay
    )
