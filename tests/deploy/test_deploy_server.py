"""The repository for the container, its flags and its metrics on a real tritonserver, on a CPU."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pikfix_steps import ENSEMBLES, NETWORKS, PYTHON_STEPS, SYSTEM
from PIL import Image

from pikfix.client import PikFixClient
from pikfix.export import Manifest, read_manifest
from pikfix.export.configs import ServingSettings, build_configs
from pikfix.export.repository import publish, staging_folder
from pikfix.export.runtimes.onnxruntime import OnnxRuntime
from pikfix.export.targets import NGC, Placement
from pikfix.serving import embedded
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.pikfix.networks import load_checkpoint

pytestmark = pytest.mark.serving

DEPLOY = Path(__file__).parents[2] / "deploy"
# Where there is no GPU the server has no such metrics.
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
# Of decode_photo, and there only with a library.
OWN_METRICS = {"pikfix_reference_cache_total"}


def flags() -> list[str]:
    """The Dockerfile's, without what the embedded server has no backend for."""
    text = (DEPLOY / "Dockerfile").read_text()
    command = text[text.index("\nCMD [") + 5 :].replace("\\\n", " ")
    words: list[str] = json.loads(command)
    kept = ("--rate-limit", "--cache-config", "--metrics-config", "--grpc", "--exit")
    return [word for word in words[1:] if word.startswith(kept)]


@pytest.fixture(scope="module")
def for_the_container(
    checkpoint: Path, exported: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Published from networks that were exported before: their gate is not under test."""
    source, manifest = exported
    repository = tmp_path_factory.mktemp("ngc") / "model_repository"
    settings = ServingSettings()
    runtimes = dict.fromkeys(NETWORKS, OnnxRuntime(settings))
    config = load_checkpoint(checkpoint).config
    configs = build_configs(SYSTEM, config, runtimes, settings, Placement(NGC, "cpu"))
    with staging_folder(repository) as staged:
        for name in NETWORKS:
            shutil.copytree(source / name / "1", staged / name)
        models = {name: dict(entry) for name, entry in manifest.models.items()}
        publish(repository, staged, configs, replace(manifest, target="ngc", models=models))
    assert read_manifest(repository).target == "ngc"
    return repository


@pytest.fixture(scope="module")
def server(
    for_the_container: Path,
    exported: tuple[Path, Manifest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    """Steps as for the container. The ensembles are the embedded server's: theirs have a bound
    that came with server 2.63."""
    repository = tmp_path_factory.mktemp("mixed") / "model_repository"
    shutil.copytree(for_the_container, repository)
    for name in ENSEMBLES:
        bound = (repository / name / "config.pbtxt").read_text()
        assert "max_inflight_requests" in bound
        shutil.copyfile(exported[0] / name / "config.pbtxt", repository / name / "config.pbtxt")
    wheel = embedded.wheel()
    assert wheel is not None and wheel.root is not None
    words = [*flags(), f"--cache-directory={wheel.root / 'caches'}"]
    with start_server(repository, supervise=False, words=words) as running:
        yield running


def photo(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (90, 70, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def metrics(server: RunningServer) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_python_steps_are_the_same_files(for_the_container: Path) -> None:
    for step in PYTHON_STEPS:
        own = DEPLOY.parent / "model_repository" / step / "1" / "model.py"
        assert (for_the_container / step / "1" / "model.py").read_bytes() == own.read_bytes()


def test_photos_pass_through_them_and_restore_is_cached(server: RunningServer) -> None:
    def hits() -> float:
        found = re.search(
            r'^nv_cache_num_hits_per_model\{model="restore",.*\} (\S+)$', metrics(server), re.M
        )
        return float(found[1]) if found else 0.0

    with PikFixClient(server.grpc_url) as client:
        first = client.restore(photo(1), reference=photo(2), format="png")
        before = hits()
        second = client.restore(photo(1), reference=photo(3), format="png")
        again = client.restore(photo(1), reference=photo(2), format="png")
    assert Image.open(io.BytesIO(first.data)).size == (70, 90)
    assert hits() == before + 2  # the same photo with other references: restored once
    assert again.data == first.data
    assert second.data != first.data


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:nv|pikfix)_[a-z_]+[a-z]\b", text))


def test_every_metric_in_the_dashboard_and_the_autoscaler_is_served(server: RunningServer) -> None:
    with PikFixClient(server.grpc_url) as client:
        client.restore(photo(4), reference=photo(5), format="png")
    served = names_in(metrics(server))
    dashboard = json.loads((DEPLOY / "grafana" / "pikfix.json").read_text())
    expressions = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    adapter = (DEPLOY / "kubernetes" / "prometheus-adapter-values.yaml").read_text()
    used = names_in(expressions) | {n for n in names_in(adapter) if n.startswith("nv_")}
    assert len(used) >= 15
    assert used - served - GPU_METRICS - OWN_METRICS == set()
    step = (DEPLOY.parent / "model_repository" / "decode_photo" / "1" / "model.py").read_text()
    assert all(f'"{name}"' in step for name in OWN_METRICS)
    # The labels that expressions select by.
    assert re.search(r'nv_inference_request_summary_us\{.*quantile="0.99"', metrics(server))
    assert re.search(r'nv_inference_request_failure\{model="restore",.*reason=', metrics(server))


def test_the_canary_tells_a_living_server_from_none(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("canary", DEPLOY / "canary.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["canary.py", server.grpc_url])
    assert module.main() == 0
    monkeypatch.setattr(sys, "argv", ["canary.py", "127.0.0.1:1"])
    assert module.main() == 1
    assert capsys.readouterr().err
