"""The GPU campaign on a machine without a GPU, and the logic that a GPU would not show."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pikfix.export.parity import Case
from pikfix.networks import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_campaign.sh"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU gets")
def test_without_a_gpu_it_ends_with_its_own_code_and_no_figure(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "nothing was measured" in done.stdout
    state = json.loads((tmp_path / "campaign.json").read_text())
    assert state["environment"]["passed"]
    assert state["environment"]["gpu"] is None
    others = {name: result for name, result in state.items() if name != "environment"}
    assert len(others) > 20
    for result in others.values():
        assert result == {"passed": False, "skipped": "no NVIDIA GPU", "tries": 1}
    text = (tmp_path / "campaign.md").read_text()
    assert "No NVIDIA GPU: nothing was measured" in text
    assert not any(word in text for word in ("photos/s", "p50", "GiB"))
    assert not (tmp_path / "campaign.png").exists()


def test_a_call_ends_in_time_and_the_next_goes_on(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = modules("gpu_campaign")
    ran: list[str] = []
    outcomes = {"good": True, "slow": True, "bad": False}

    def apart(out: Path, checkpoint: Path, name: str, limit: float) -> dict[str, Any]:
        ran.append(name)
        return {"passed": outcomes[name]}

    def listed(out: Path, checkpoint: Path) -> list[Any]:
        never = lambda limit: {}  # noqa: E731
        return [campaign.Step(n, never, 1000 if n == "slow" else 0) for n in outcomes]

    monkeypatch.setattr(campaign, "apart", apart)
    monkeypatch.setattr(campaign, "steps", listed)
    monkeypatch.setattr(campaign, "gpu_name", lambda: "a stand-in")
    go = lambda: campaign.run(tmp_path, tmp_path / "none", 100)  # noqa: E731
    assert go() == campaign.MORE
    assert ran == ["good", "bad"]  # no time for the slow one any more
    assert go() == 1  # the slow one first in its call; the bad one a second and last time
    assert ran == ["good", "bad", "slow", "bad"]
    assert go() == 1
    assert len(ran) == 4
    outcomes["bad"] = True
    state = json.loads((tmp_path / "campaign.json").read_text())
    del state["bad"]
    (tmp_path / "campaign.json").write_text(json.dumps(state))
    assert go() == 0


def test_a_step_that_crashes_or_hangs_is_a_failed_step(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = modules("gpu_campaign")
    result = campaign.logged(tmp_path, "dies", [sys.executable, "-c", "import os; os.abort()"], 30)
    assert not result["passed"]
    words = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    result = campaign.logged(tmp_path, "hangs", words, 3)
    assert not result["passed"]
    assert "stopped after 3 s" in result["exit"]

    def raises(limit: float) -> dict[str, Any]:
        raise ValueError("no such thing")

    monkeypatch.setattr(campaign, "steps", lambda out, c: [campaign.Step("raises", raises)])
    (tmp_path / "steps").mkdir()
    campaign.run_here(tmp_path, tmp_path, "raises", 1)
    found = json.loads((tmp_path / "steps" / "raises.json").read_text())
    assert found == {"passed": False, "error": "ValueError: no such thing"}


def test_what_a_gpu_has_measured_is_reported(modules: Any, tmp_path: Path) -> None:
    step = {"p5": 1.0, "p50": 2.0, "p95": 3.0, "runs": 5}
    row = {"precision": "fp16", "size": 256, "batch": 1, "photos_per_second": 1.0, "peak_bytes": 1}
    rows = [
        row | {"milliseconds": dict.fromkeys(("restore", "similarity", "colorize"), step)},
        {"precision": "fp16", "size": 256, "batch": 32, "problem": "out of memory"},
    ]
    state = {
        "environment": {"passed": True, "gpu": "a stand-in", "versions": {}, "date": "today"},
        "latency-fp16-256": {"passed": True, "rows": rows},
        "memory": {"passed": False, "error": "RuntimeError: broken"},
    }
    modules("gpu_report").write_report(tmp_path, state)
    text = (tmp_path / "campaign.md").read_text()
    assert "| fp16 | 256 | 1 | 2.00 | 2.00 | 2.00 | 1.0 | 0.00 |" in text
    assert "| fp16 | 256 | 32 | out of memory |" in text
    assert "| memory | **failed**: RuntimeError: broken |" in text
    assert (tmp_path / "campaign.png").stat().st_size > 5000


def test_parity_is_judged_against_float32(
    modules: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code on a CPU, where half precision differs from float32 just as it would there."""
    gpu = modules("gpu_measurements")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    # At the shipped network's temperature: a third of it magnifies rounding three times.
    model = load_checkpoint(checkpoint)
    model.config = dataclasses.replace(model.config, temperature=0.03)
    save_checkpoint(model, tmp_path / "warm.safetensors")
    found = gpu.parity(tmp_path / "warm.safetensors", [Case(1, 2, (64, 96), (64, 64))])
    assert found["passed"], found["rows"]
    worst = {
        p: max(row["max_abs"] for row in found["rows"] if row["precision"] == p)
        for p in gpu.PRECISIONS
    }
    assert worst["fp32"] < 1e-5 < worst["fp16"] < worst["bf16"]
    assert {row["step"] for row in found["rows"]} == {"restore", "similarity", "colorize"}
    networks = gpu.Networks

    class Wrong(networks):  # type: ignore[misc,valid-type]
        def __init__(self, path: Path, precision: str) -> None:
            super().__init__(path, precision)
            next(iter(self.modules["colorize"].parameters())).data.add_(1)

    monkeypatch.setattr(gpu, "Networks", Wrong)
    assert not gpu.parity(checkpoint, [Case(1, 1, (64, 64), (64, 64))])["passed"]
