"""Cores that the instances of a server share, over processes and their ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from backend_files import load_backend

from pikfix.serving import embedded
from pikfix.serving.cores import SharedCores

HOLD = """
import sys
from pathlib import Path
from pikfix.serving.cores import SharedCores
with SharedCores(Path(sys.argv[1]), sys.argv[2], 8).part() as threads:
    print(threads, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "computing"


def test_one_alone_takes_all_and_several_take_parts(folder: Path) -> None:
    instances = [SharedCores(folder, f"restore_0_{i}", 8) for i in range(10)]
    with instances[0].part() as threads:
        assert threads == 8
    given = []
    with ExitStack() as stack:
        given = [stack.enter_context(instance.part()) for instance in instances]
    assert given == [8, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    with instances[3].part() as threads:
        assert threads == 8


def test_an_instance_that_fails_gives_its_part_back(folder: Path) -> None:
    first, second = SharedCores(folder, "a", 2), SharedCores(folder, "b", 2)
    with pytest.raises(RuntimeError), first.part():
        raise RuntimeError
    with second.part() as threads:
        assert threads == 2


def test_a_killed_process_gives_its_part_back(folder: Path) -> None:
    cores = SharedCores(folder, "restore_0_0", 8)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), "restore_0_1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "8\n"
        with cores.part() as threads:
            assert threads == 4
    finally:
        other.kill()
        other.communicate()
    with cores.part() as threads:
        assert threads == 8


def test_the_pytorch_backends_instances_share_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "pytorch"  # as the server has its own
    shutil.copytree(embedded.BACKENDS / "pytorch", copy)
    backend = load_backend(copy / "model.py")
    monkeypatch.setattr(backend, "available_cores", lambda: 6)
    first, second = (backend.threads_of({}, f"restore_0_{i}") for i in range(2))
    told = {"parameters": {"intra_op_thread_count": {"string_value": "5"}}}
    fixed = backend.threads_of(told, "colorize_0_0")
    with first() as one, second() as two, fixed() as three:
        assert (one, two, three) == (6, 3, 5)
    assert sorted(path.name for path in (copy / "computing").iterdir()) == [
        "restore_0_0",
        "restore_0_1",
    ]
