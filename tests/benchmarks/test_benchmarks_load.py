"""The load tests' own arithmetic: a load generator that flatters is worse than none."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from pikfix_steps import NETWORKS, SYSTEM

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER), str(FOLDER / "load")]

import common  # noqa: E402
import open_loop  # noqa: E402
import tuning  # noqa: E402

import photos  # noqa: E402
from pikfix.export.configs import ServingSettings, build_configs, render  # noqa: E402
from pikfix.export.repository import parse_config  # noqa: E402
from pikfix.export.runtimes.onnxruntime import OnnxRuntime  # noqa: E402
from pikfix.systems.pikfix.networks import PRESETS  # noqa: E402


def run(send: open_loop.Send, **choices: float) -> open_loop.Outcome:
    settings = {"rate": 200.0, "seconds": 0.5, "in_flight": 1000, **choices}
    return asyncio.run(open_loop.run_open_loop(send, **settings))  # type: ignore[arg-type]


def test_arrivals_do_not_wait_for_answers() -> None:
    async def slow(_: int) -> None:
        await asyncio.sleep(0.3)

    outcome = run(slow)
    assert 60 < outcome.sent < 150  # 100 on average; a closed loop would send 2
    assert len(outcome.latencies) == outcome.sent and outcome.skipped == 0
    assert min(outcome.latencies) >= 0.29


def test_latency_counts_from_the_intended_send() -> None:
    """A server that stalls the sender itself: what was due in the stall has waited too."""
    stalled = False

    async def stall(_: int) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            import time

            time.sleep(0.3)  # blocks the loop, as a full socket would

    outcome = run(stall)
    waited = sorted(outcome.latencies)
    assert waited[-1] >= 0.25
    assert waited[int(0.7 * len(waited))] > 0.05  # not one slow request: many
    assert outcome.most_late >= 0.2


def test_the_cap_skips_and_counts() -> None:
    async def never_soon(_: int) -> None:
        await asyncio.sleep(0.6)

    outcome = run(never_soon, in_flight=3)
    assert outcome.sent == 3
    assert outcome.skipped > 50


def test_goodput_leaves_out_late_answers_and_errors() -> None:
    async def mixed(number: int) -> None:
        if number % 4 == 0:
            raise KeyError("refused")
        await asyncio.sleep(0.2 if number % 4 == 1 else 0.0)

    outcome = run(mixed)
    figures = outcome.to_dict(objective=0.1)
    assert outcome.errors["KeyError"] == len(outcome.refused) > 0
    assert figures["goodput"] < 0.75 * figures["throughput"]
    assert outcome.goodput(10.0) == pytest.approx(figures["throughput"])


def test_the_mix_is_what_it_says() -> None:
    mix = photos.Mix(seed=1)
    drawn = [mix.draw() for _ in range(3000)]
    for width, height, share in photos.MIX:
        seen = sum((d.width, d.height) == (width, height) for d in drawn) / len(drawn)
        assert seen == pytest.approx(share, abs=0.04)
    assert {d.photo[:2] for d in drawn} == {b"\xff\xd8"}


def test_steps_are_differences_of_two_readings() -> None:
    before = {"restore": dict.fromkeys(("success", "failed", "executions", "inferences"), 10.0)}
    before["restore"] |= {"queue_s": 1.0, "compute_s": 5.0, "queued": 10.0}
    after = {"restore": {key: value * 2 for key, value in before["restore"].items()}}
    after["restore"]["executions"] = 15.0
    row = common.per_step(before, after)["restore"]
    assert row["queue_ms"] == pytest.approx(100) and row["compute_ms"] == pytest.approx(500)
    assert row["batch"] == pytest.approx(2)
    assert common.per_step(before, before) == {}


@pytest.mark.parametrize(
    ("setting", "name", "change"), tuning.VARIANTS, ids=[name for _, name, _ in tuning.VARIANTS]
)
def test_a_variant_changes_a_copy_and_only_what_it_says(
    tmp_path: Path, setting: str, name: str, change: tuning.Change
) -> None:
    runtime = OnnxRuntime(ServingSettings(instances=2))
    configs = build_configs(SYSTEM, PRESETS["compact"], dict.fromkeys(NETWORKS, runtime))
    for model, config in configs.items():
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.pbtxt").write_text(render(config))
    (tmp_path / "copy").mkdir()
    copy = tuning.changed_copy(tmp_path / "models", change, tmp_path / "copy")
    touched = set()
    for model, config in configs.items():
        assert parse_config((tmp_path / "models" / model / "config.pbtxt").read_text()) == config
        other = parse_config((copy / model / "config.pbtxt").read_text())
        names = [field.name for field in config.DESCRIPTOR.fields]
        touched |= {name for name in names if getattr(config, name) != getattr(other, name)}
    fields_of = {
        "": set(),
        "batching": {"dynamic_batching"},
        "instances": {"instance_group"},
        "priority": {"parameters"},
        "threads": {"parameters"},
        "buckets": {"parameters"},
    }
    assert touched == fields_of[setting]
