"""The demo's own parts; that its picture is right, the serving tests show."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer
from PIL import Image

from pikfix.cli.main import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PIKFIX_LIBRARY", "")  # that what the demo sets is taken back
    return module


def test_steps_say_in_a_pipe_how_long_the_rest_takes(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A machine half as fast as expected: 20 s for the first step, not 10.
    seconds = itertools.chain([0.0, 0.0, 20.0], itertools.repeat(60.0))
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(seconds))
    with demo.Steps({"weights": 10.0, "server": 30.0, "photo": 10.0}) as steps:
        for name in ("weights", "server", "a detail of it", "photo"):
            steps.begin(name)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [re.sub(r" \.\.\..*", "", line) for line in lines] == ["weights", "server", "photo"]
    assert re.findall(r"about (\d+) s left", "".join(lines)) == ["50", "67", "14"]


def test_a_second_run_exports_nothing_and_another_checkpoint_exports_again(
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = []

    def export(checkpoint: Path, repository: Path, **settings: object) -> None:
        repository.mkdir(exist_ok=True)
        (repository / "manifest.json").write_text("{}")
        done.append("export")

    def build_library(pictures: Path, library: Path, *, backbone: Path, rebuild: bool) -> None:
        done.append("rebuild" if rebuild else "update")

    photo = SimpleNamespace(
        image=Image.new("RGB", (8, 8)),
        report=SimpleNamespace(
            references=[SimpleNamespace(name="motorcycle.png", score=0.9, share=1.0)],
            seconds=SimpleNamespace(decode_photo=0.1, networks=1.0, encode_photo=0.1),
        ),
    )
    client = SimpleNamespace(restore=lambda *given, **more: photo)
    monkeypatch.setattr(demo, "export_checkpoint", export)
    monkeypatch.setattr(demo, "build_library", build_library)
    monkeypatch.setattr(
        demo,
        "start_server",
        lambda repository: contextlib.nullcontext(SimpleNamespace(grpc_url="")),
    )
    monkeypatch.setattr(demo, "PikFixClient", lambda url: contextlib.nullcontext(client))
    checkpoint = tmp_path / "weights"
    checkpoint.write_bytes(b"one")
    options = argparse.Namespace(
        checkpoint=checkpoint, output=tmp_path / "out", seed=0, model_repository=None
    )
    assert demo.run(options) == 0
    assert done == ["export", "rebuild"]
    assert demo.run(options) == 0
    assert done[2:] == ["update"]
    last = capsys.readouterr().out.splitlines()[-1]
    label, *words = shlex.split(last.partition(": ")[2])[1:]
    command = typer.main.get_command(build(label)).commands[label]
    taken = command.make_context(label, words).params
    assert taken["model_repository"] == tmp_path / "out" / "model_repository"
    assert taken["library"] == tmp_path / "out" / "library"
    checkpoint.write_bytes(b"two")
    assert demo.run(options) == 0
    assert done[3:] == ["export", "rebuild"]
    assert Image.open(tmp_path / "out" / "comparison.png").width > 1000
