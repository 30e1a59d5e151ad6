import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def test_kernels_match_their_twins_in_the_interpreter():
    """In a process of its own: whether a kernel is interpreted is decided when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=CASES.parents[2],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 60, done.stdout[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_every_tile_configuration_compiles_within_the_gpu(capability):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "pikfix.kernels.cross_compile", "--capability", str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    limit = {80: 163 * 1024, 90: 227 * 1024}[capability]
    assert len(reports) >= 40
    for report in reports:
        assert report["shared"] <= report["shared_limit"] <= limit, report
        assert report["spilled"] == 0, report
        if report["matrix"]:
            assert report["wgmma"] if capability == 90 else report["mma"], report
