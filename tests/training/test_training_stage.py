"""A stage that the product does not know, trained by the same trainer."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from training_runs import Quiet, rows_of

from pikfix.training.config import OptimizerConfig
from pikfix.training.errors import TrainingError
from pikfix.training.loop import Budget, Trainer
from pikfix.training.stage import Critic, Figures, Stage
from pikfix.training.state import load_state

OPTIONS = OptimizerConfig(
    batch=2, learning_rate=0.05, warmup=1, schedule="constant", precision="fp32", ema=0.5
)


class Blur:
    """By step, noise and the same blurred by a known filter."""

    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])[None, None]

    def __getitem__(self, step):
        sharp = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(step))
        return {"sharp": sharp, "blurred": F.conv2d(sharp, self.kernel, padding=1)}


class ToyStage(Stage):
    name = "toy"
    data = Blur()
    photos = 8
    measures = ("closeness",)

    def __init__(self, channels=1):
        torch.manual_seed(0)
        self.weights = {"distance": 2.0, "sum": 0.5}
        self.network = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.extras = {"gain": nn.Conv2d(channels, 1, 1)}
        self.critics = (Critic("judge", nn.Conv2d(1, 1, 3), self.tell_apart),)

    def parameters(self):
        return list(self.network[0].parameters())

    def anneal(self, network, used):
        return {"used": used}

    def forward(self, inputs):
        return {"made": self.extras["gain"](self.network(inputs["sharp"]))}

    def losses(self, inputs, outputs):
        distance = (outputs["made"] - inputs["blurred"]).square().mean()
        return {"distance": distance, "sum": outputs["made"].mean().abs()}

    def tell_apart(self, judge, inputs, outputs):
        return judge(outputs["made"].detach()).mean() - judge(inputs["blurred"]).tanh().mean()

    def validate(self, network):
        assert not network.training
        made = network(self.data[99]["sharp"])
        return Figures({"closeness": -float((made - self.data[99]["blurred"]).square().mean())}, 1)

    def save(self, network, path, metadata):
        save_file(network.state_dict(), path, metadata)


def trainer(folder, steps, stage=None):
    folder.mkdir(exist_ok=True)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    budget = Budget(steps=steps, validation_minutes=100, log_steps=1)
    return Trainer(
        stage or ToyStage(), OPTIONS, budget, fabric=fabric, folder=folder, reporter=Quiet()
    )


def test_a_stage_of_another_kind_trains(tmp_path):
    stage = ToyStage()
    before = {name: tensor.clone() for name, tensor in stage.network.state_dict().items()}
    assert trainer(tmp_path / "run", 10, stage).run(0, resumed=False).reason == "finished"
    rows = rows_of(tmp_path / "run" / "training.csv")
    assert len(rows) == 10
    for row in rows:
        weighted = 2 * float(row["distance"]) + 0.5 * float(row["sum"])
        assert float(row["total"]) == pytest.approx(weighted, rel=1e-4)
    assert float(rows[-1]["distance"]) < 0.5 * float(rows[0]["distance"])
    assert [float(row["used"]) for row in rows] == pytest.approx([i / 10 for i in range(10)])
    assert float(rows[-1]["judge"]) < float(rows[0]["judge"])
    assert list(rows_of(tmp_path / "run" / "validation.csv")[0]) == ["step", "minutes", "closeness"]
    # What is not among the parameters stays, batch statistics included.
    after = stage.network.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"0.weight", "0.bias"}
    averaged = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(averaged["0.weight"], after["0.weight"])


def test_its_run_continues_exactly_and_fits_no_other_network(tmp_path):
    trainer(tmp_path / "whole", 6).run(0, resumed=False)
    trainer(tmp_path / "parts", 3).run(0, resumed=False)
    state, _ = load_state(tmp_path / "parts")
    second = trainer(tmp_path / "parts", 6)
    second.restore(state)
    assert second.run(0, resumed=True).step == 6
    whole, parts = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(TrainingError, match="does not fit this version's networks") as caught:
        trainer(tmp_path / "parts", 6, ToyStage(channels=2)).restore(state)
    assert "\n" not in str(caught.value)
