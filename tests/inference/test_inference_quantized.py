"""Int8 forms: exact where integers are exact, close to float32 elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pikfix_steps import inference_step, module_of, step_of
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.inference import load_step, quantized, save_step
from pikfix.inference import step as inference_file
from pikfix.inference.quantized import Int8Conv2d, input_ranges, quantize, to_bytes
from pikfix.layers.blocks import DenseBlock, ResidualDenseBlock
from pikfix.systems.chain import run_step
from pikfix.systems.pikfix.networks import PikFix, PikFixConfig
from pikfix.systems.pikfix.networks.colorization import DecoderStage, FusionModule

needs_vnni = pytest.mark.skipif(
    not quantized.vnni_supported(), reason="this CPU does not multiply bytes"
)


def lasting(*shape: int, seed: int = 0) -> Tensor:
    """Noise in channels_last order."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise.contiguous(memory_format=torch.channels_last)


def signal_to_error(expected: Tensor, actual: Tensor) -> float:
    """In dB."""
    error = (expected.double() - actual.double()).square().mean()
    return float(10 * torch.log10(expected.double().square().mean() / error))


@needs_vnni
@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (3, 2)])
def test_integer_convolutions_are_exact_up_to_the_border(
    zero: int, kernel: int, stride: int
) -> None:
    """Whole numbers as weights and bytes as inputs, compared with a convolution in float64."""
    rng = np.random.default_rng(kernel)
    conv = nn.Conv2d(5, 6, kernel, stride, kernel // 2)
    weight = torch.from_numpy(rng.integers(-127, 128, conv.weight.shape))
    weight[:, 0, 0, 0] = 127  # so that a step of the weights is 1
    bias = torch.from_numpy(rng.integers(-1000, 1000, 6))
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(bias)
    data = torch.from_numpy(rng.integers(0, 256, (2, 5, 9, 7), dtype=np.uint8))
    data = data.contiguous(memory_format=torch.channels_last)
    plain = F.conv2d(
        data.double() - zero, weight.double(), bias.double(), stride, padding=kernel // 2
    )

    out = Int8Conv2d(conv, torch.ones(5), zero=zero)(data)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.double(), plain.to(torch.bfloat16).double())

    steps = torch.from_numpy(2.0 ** rng.integers(8, 12, 6)).float()
    to = Int8Conv2d(conv, torch.ones(5), zero=zero, relu=True, output=(steps, 7))(data)
    assert to.dtype == torch.uint8
    expected = (plain.relu() / steps.view(1, -1, 1, 1)).round().add(7).clamp(0, 255)
    # Halves may be rounded either way.
    assert int((to.int() - expected.int()).abs().max()) <= 1
    assert float((to.double() != expected).double().mean()) < 0.01


@pytest.mark.parametrize("pieces", [1 << 18, 50])
def test_bytes_are_the_nearest_and_clip(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_SLICE", pieces)
    values = lasting(2, 3, 8, 5).to(torch.bfloat16)
    steps = torch.tensor([0.5, 0.01, 0.125])
    got = to_bytes(values, steps, 128)
    assert got.shape == values.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    scaled = values.double().numpy() / steps.double().numpy()[None, :, None, None] + 128
    clipped = np.clip(scaled, 0, 255)
    assert np.abs(got.numpy() - clipped).max() <= 0.5 + 1e-4
    assert (scaled < 0).any() and (scaled > 255).any()


def test_ranges_are_the_extremes_of_every_input_channel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    first, second = lasting(1, 3, 8, 8), 2 * lasting(2, 3, 6, 6, seed=1)
    found = input_ranges(network, lambda: (network(first), network(second)))
    seen = np.concatenate(
        [x.numpy().transpose(1, 0, 2, 3).reshape(3, -1) for x in (first, second)], axis=1
    )
    np.testing.assert_array_equal(found["0"].numpy(), [seen.min(1), seen.max(1)])
    with torch.no_grad():
        answers = [network[0](x).relu().transpose(0, 1).flatten(1) for x in (first, second)]
        hidden = torch.cat(answers, dim=1)
    torch.testing.assert_close(found["2"], torch.stack((hidden.amin(1), hidden.amax(1))))
    assert not network[0]._forward_pre_hooks


class OneBlock(nn.Module):
    """A network of one block, with what it is called on."""

    def __init__(self, block: nn.Module, *inputs: Tensor) -> None:
        super().__init__()
        self.block, self.inputs, self.dtype = block, inputs, torch.float32

    def forward(self) -> Tensor:
        """Call the block in the precision of the moment."""
        answer: Tensor = self.block(*(x.to(self.dtype) for x in self.inputs))
        return answer


def one_block(kind: str, config: PikFixConfig) -> OneBlock:
    """A block of every kind that has a form in bytes."""
    x, skip = lasting(2, 16, 12, 20), lasting(2, 10, 24, 40, seed=2)
    match kind:
        case "residual":
            return OneBlock(ResidualDenseBlock(16, 8, 3), x)
        case "dense":
            return OneBlock(DenseBlock(16, growth=8, bottleneck=12, units=3, dropout=0.0), x)
        case "fusion":
            warped = lasting(2, config.warped_channels, 12, 20, seed=4).relu()
            best = lasting(2, 1, 12, 20, seed=5)
            return OneBlock(FusionModule(16, config), x, warped, best)
        case _:
            return OneBlock(DecoderStage(16, 10, 12, 8, 2), x, skip)


@needs_vnni
@pytest.mark.parametrize("kind", ["residual", "dense", "fusion", "decoder"])
def test_every_form_computes_its_block(kind: str, tiny: PikFix) -> None:
    """30 dB of signal to error after several layers of 8 bits; a wrong step or zero is below 10."""
    torch.manual_seed(3)
    network = one_block(kind, tiny.config).eval()
    ranges = input_ranges(network, network)
    with torch.inference_mode():
        expected = network()
        quantize(network, ranges)
        network.dtype = torch.bfloat16
        actual = network.to(torch.bfloat16)()
    assert any(isinstance(module, Int8Conv2d) for module in network.modules())
    assert 30 < signal_to_error(expected, actual) < 60  # above: it was not quantized


@needs_vnni
@pytest.mark.parametrize("name", ["restore", "colorize"])
def test_a_step_survives_its_file(tiny: PikFix, name: str, tmp_path: Path) -> None:
    luminance = lasting(1, 1, 64, 64).clamp(-1, 1)
    reference = lasting(1, 3, 64, 64, seed=1)[:, None].clamp(-1, 1) / 2
    step, module = step_of(tiny.config, name), module_of(tiny, name)
    with torch.inference_mode():
        warped, confidence = tiny.similarity(luminance, reference)
    inputs = {"filled_l": luminance, "working_l": luminance}
    inputs |= {f"warped_{i}": value for i, value in enumerate(warped, 1)}
    inputs |= {f"confidence_{i}": value for i, value in enumerate(confidence, 1)}
    ranges = input_ranges(module, lambda: run_step(module, step, inputs))
    save_step(module, step, "int8", tmp_path / "step", ranges=ranges)
    loaded = load_step(tmp_path / "step")
    assert (loaded.precision, loaded.dtype) == ("int8", torch.bfloat16)
    fresh = inference_step(tiny, name, "int8", ranges)
    for key, value in loaded(inputs).items():
        assert torch.equal(value, fresh(inputs)[key]), key


def test_a_cpu_that_cannot_is_told(
    tiny: PikFix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = {"a": torch.zeros(2, 1)}
    step = step_of(tiny.config, "restore")
    save_step(module_of(tiny, "restore"), step, "int8", tmp_path / "s", ranges=ranges)
    monkeypatch.setattr(inference_file, "vnni_supported", lambda: False)
    with pytest.raises(ValueError, match=r"no instructions for .* --precision bf16 or fp32"):
        load_step(tmp_path / "s")
