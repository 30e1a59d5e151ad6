"""What `doctor` finds, against what is known of this environment by other means."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy
import pytest

from pikfix.cli.doctor import lines
from pikfix.serving import doctor, embedded, preflight


def test_environment_of_the_tests_can_serve(toy_repository):
    found = doctor.examine(toy_repository)
    assert found.problems == ()
    assert found.packages["numpy"] == numpy.__version__
    assert found.python.version == platform.python_version()
    assert found.python.stub is not None
    assert found.server.source == "nvidia-pytriton"
    assert found.machine.cores == len(os.sched_getaffinity(0))
    assert found.machine.shm_size == preflight.shared_memory()[0]
    assert found.repository is not None
    assert found.repository.versions["restore"] == (1,)


def test_flags_are_the_kernels():
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    flags = doctor.machine().cpu_flags
    assert all(f" {flag}" in listed for flag in flags)
    assert [f for f in doctor.CPU_FLAGS if f" {f} " in f"{listed} ".replace("\n", " ")] == [*flags]


def test_manifest_is_read_or_its_damage_told(toy_repository, tmp_path):
    repository = tmp_path / "models"
    (repository / "other/1").mkdir(parents=True)
    assert doctor.repository(repository).manifest is None
    (repository / "manifest.json").write_text(json.dumps({"checkpoint": "abc"}))
    assert doctor.repository(repository).manifest == {"checkpoint": "abc"}
    (repository / "manifest.json").write_text("[1]")
    assert "is no JSON object" in str(doctor.repository(repository).problem)
    (repository / "manifest.json").write_text("{")
    assert "cannot be read" in str(doctor.repository(repository).problem)


def test_nothing_is_raised_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "on_path", lambda: None)
    monkeypatch.setattr(embedded, "wheel", lambda: None)
    monkeypatch.setattr(doctor, "_gpus", lambda: ())
    found = doctor.examine(tmp_path / "none")
    assert found.server.path is None
    assert any("nvidia-pytriton is not installed" in problem for problem in found.problems)
    assert any("does not exist" in problem for problem in found.problems)
    assert found.repository is not None and found.repository.models == ()


def test_server_on_the_path_is_reported(tmp_path, monkeypatch):
    server = tmp_path / "tritonserver"
    server.write_bytes(b"\x7fELF")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(embedded.GUARD, raising=False)
    assert doctor.server() == doctor.Server(str(server), "PATH", None, None)
    assert isinstance(embedded.on_path(), Path)


def test_precisions_are_said_with_their_reason(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    held = doctor.machine()
    assert held.precisions is not None
    assert (held.precisions.good, held.precisions.training) == (("fp32",), "fp32")
    text = "\n".join(lines(dataclasses.replace(doctor.examine(), machine=held)))
    assert "good at fp32: it has no products of bfloat16 or bytes, under ONEDNN_MAX_CPU_ISA" in text
    assert "training    takes fp32" in text


@pytest.mark.parametrize(
    ("manifest", "slow"),
    [
        ({"device": "cpu", "precision": "bf16"}, "bf16"),
        ({"device": "cpu", "precision": "int8"}, "int8"),
        ({"device": "cpu", "precision": "fp32"}, None),
        ({"device": "cuda", "precision": "bf16"}, None),
        (
            {
                "device": "cpu",
                "precision": "measured",
                "measured": {
                    "chosen": {
                        "restore": "runtime pytorch, device cpu, precision int8",
                        "colorize": "runtime pytorch, device cpu, precision bf16",
                    }
                },
            },
            "bf16 and int8",
        ),
        ({"device": "cpu", "measured": "nothing"}, None),
    ],
)
def test_a_repository_in_a_precision_that_is_emulated_is_warned_of(
    tmp_path, monkeypatch, manifest, slow
):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    said = [w for w in doctor.examine(tmp_path).warnings if "exported in" in w]
    assert [f"in {slow}, which" in w for w in said] == ([True] if slow else [])
