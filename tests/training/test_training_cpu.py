"""Training on CPUs that other people have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from cpu_like import avx2_environment
from torch import nn
from training_runs import SMALL

from pikfix.cli.main import main
from pikfix.kernels import cpu
from pikfix.layers.blocks import StridedPointwise
from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.networks.config import PRESETS
from pikfix.training.features import SqueezeNet
from pikfix.training.losses import PatchDiscriminator
from pikfix.training.run import usual_precision

STEPS = """
import sys
from pikfix.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_on_a_cpu_with_avx2_alone_keeps_its_heap_whole(photo_folder, tmp_path):
    words = ["train", "--photos", str(photo_folder), "-o", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *words, "--steps", "2", "--precision", "fp32"],
        env=avx2_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "finished at step 2" in done.stdout


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("bias", [True, False])
def test_picked_out_pixels_give_the_same_values_and_gradients(channels, bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 6, 1, stride=2, bias=bias).double()
    ours = StridedPointwise(channels, 6, 1, stride=2, bias=bias).double()
    ours.load_state_dict(plain.state_dict())
    for height, width in ((8, 10), (7, 9), (1, 2)):
        data = torch.rand(2, channels, height, width, dtype=torch.float64)
        asked = [data.clone().requires_grad_() for _ in range(2)]
        results = []
        for conv, x in zip((plain, ours), asked, strict=True):
            conv.zero_grad()
            y = conv(x)
            (y * y).sum().backward()
            results.append([y, x.grad, *(p.grad for p in conv.parameters())])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)


def test_nothing_that_learns_asks_onednn_for_a_strided_pointwise_gradient(smallest_config):
    """The one kind of convolution whose gradient overruns a buffer."""
    networks = [PikFix(config) for config in (*PRESETS.values(), smallest_config)]
    networks += [PatchDiscriminator(4), SqueezeNet()]
    seen = 0
    for network in networks:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) == 1 < max(layer.stride):
                assert isinstance(layer, StridedPointwise), name
                seen += 1
    assert seen == 3 * (len(PRESETS) + 1)


def test_precision_follows_the_cpu_and_a_resumed_run(photo_folder, tmp_path, monkeypatch, capsys):
    def steps(count, *words):
        out = ["-o", str(tmp_path / "run"), "--steps", str(count), "--train", "restoration"]
        code = main(["train", "--photos", str(photo_folder), *SMALL, *out, *words])
        kept = json.loads((tmp_path / "run" / "config.json").read_text())
        return code, kept["training"]["optimizer"]["precision"], capsys.readouterr().err

    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: True)
    assert steps(1)[:2] == (0, "bf16")
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: False)
    code, precision, error = steps(2, "--resume")
    assert (code, precision) == (0, "bf16")
    assert error.count("which this CPU emulates") == 1
    assert "resuming at step 1" in error
    shutil.rmtree(tmp_path / "run")
    code, precision, error = steps(1)
    assert (code, precision) == (0, "fp32")
    assert "emulates" not in error
    shutil.rmtree(tmp_path / "run")
    code, precision, error = steps(1, "--precision", "bf16")
    assert (code, precision) == (0, "bf16")
    assert error.count("which this CPU emulates") == 1


def test_a_gpu_keeps_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: False)
    assert usual_precision(tmp_path, resume=False, device="cuda") == "bf16"
    assert usual_precision(tmp_path, resume=True, device="cpu") == "fp32"
