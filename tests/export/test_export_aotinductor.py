"""AOTInductor packages as far as no GPU is needed; the GPU campaign compiles and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pikfix.export import ExportError, contract, export_checkpoint
from pikfix.export.configs import build_configs
from pikfix.export.runtimes.aotinductor import AOTInductor
from pikfix.export.runtimes.decompositions import DECOMPOSITIONS, WARP
from pikfix.export.targets import NGC, Placement
from pikfix.networks import PRESETS


def test_packages_are_for_the_container_and_for_a_gpu(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = {"runtime": "pytorch", "device": "cuda"}
    with pytest.raises(ExportError, match="--target ngc"):
        export_checkpoint(checkpoint, tmp_path / "repository", **words)
    with pytest.raises(ExportError, match="no NVIDIA GPU is visible"):
        export_checkpoint(checkpoint, tmp_path / "repository", target="ngc", **words)
    with pytest.raises(ExportError, match="for the embedded server"):
        export_checkpoint(checkpoint, tmp_path / "repository", runtime="pytorch", target="ngc")
    assert list(tmp_path.iterdir()) == []


def test_their_config_names_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runtime = AOTInductor("fp16", native=True)
    chosen = dict.fromkeys(contract.SUBNETS, runtime)
    configs = build_configs(PRESETS["compact"], chosen, placement=Placement(NGC, "cuda"))
    for name in contract.SUBNETS:
        assert configs[name].backend == "pytorch"
        assert configs[name].platform == "torch_aoti"
        assert configs[name].default_model_filename == "model.pt2"
    assert runtime.gate_device == "cuda"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_the_decomposed_warp_is_the_operator(masked: bool, wide: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, n, 16, generator=generator) for n in (40, 30))
    query, key = (torch.nn.functional.normalize(t, dim=-1) for t in (query, key))
    values = torch.rand(2, 30, 8, generator=generator)
    mask = torch.rand(2, 30, generator=generator) < 0.5 if masked else None
    if mask is not None:
        mask[1] = False
    expected = WARP(query, key, values, 0.05, mask, wide)
    actual = DECOMPOSITIONS[WARP](query, key, values, 0.05, mask, wide)
    for one, other in zip(expected, actual, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    if masked:
        assert all(float(t[1].abs().max()) == 0 for t in actual)
