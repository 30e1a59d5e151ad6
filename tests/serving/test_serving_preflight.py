"""Checks before a start, and the parsing they rest on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pikfix_steps import NETWORKS

from pikfix.serving import embedded, launcher, preflight, rundir
from pikfix.serving.arguments import Arguments, Endpoint
from pikfix.serving.errors import ServingError

COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Just enough files to look exported."""
    for name in NETWORKS:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").touch()
        (tmp_path / name / "1/model.onnx").touch()
    shutil.copytree(COMMITTED / "pikfix", tmp_path / "pikfix")
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def one_line(error: pytest.ExceptionInfo[ServingError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_complete_repository_passes(exported):
    preflight.check_repository(str(exported))
    (exported / "restore/1/model.onnx").unlink()
    (exported / "restore/7").mkdir()
    (exported / "restore/7/model.plan").touch()
    preflight.check_repository(str(exported))


@pytest.mark.parametrize("missing", NETWORKS)
def test_sub_net_never_exported(exported, missing):
    (exported / missing / "1/model.onnx").unlink()
    with pytest.raises(ServingError) as error:
        preflight.check_repository(str(exported))
    text = one_line(error)
    assert text.startswith(f"model repository {exported} has no exported {missing} ")
    assert f"{missing}/1/model.onnx is missing" in text
    assert "`pikfix export checkpoints/compact.safetensors`" in text


def test_clean_clone_has_steps_but_no_sub_nets(tmp_path):
    for name in ("decode_photo", "encode_photo", "pikfix", "pikfix_photo"):
        shutil.copytree(COMMITTED / name, tmp_path / name)
    with pytest.raises(ServingError, match="no exported damage, restore, tone, simil"):
        preflight.check_repository(str(tmp_path))


def test_missing_and_empty_repository(tmp_path):
    for path, what in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no model")):
        with pytest.raises(ServingError, match=what) as error:
            preflight.check_repository(str(path))
        assert "`pikfix export checkpoints/compact.safetensors`" in one_line(error)


def test_other_models_and_object_stores_pass(tmp_path):
    (tmp_path / "resnet/1").mkdir(parents=True)
    preflight.check_repository(str(tmp_path))
    preflight.check_repository("s3://bucket/models")


def test_stray_folder_is_named_and_bytecode_removed(exported):
    (exported / "__pycache__").mkdir()
    (exported / "__pycache__/__init__.cpython-311.pyc").touch()
    preflight.check_repository(str(exported))
    assert not (exported / "__pycache__").exists()
    (exported / ".export-x/restore/1").mkdir(parents=True)
    with pytest.raises(ServingError, match=r"the folder \.export-x, which is no model"):
        preflight.check_repository(str(exported))


def endpoint(port: int, name: str = "http", shared: bool = False) -> Endpoint:
    return Endpoint(name, "127.0.0.1", port, shared)


def test_port_in_use_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(ServingError) as error:
            preflight.check_ports([endpoint(port)])
        assert one_line(error).startswith(f"http port {port} on 127.0.0.1 is in use; ")
        preflight.check_ports([endpoint(port, shared=True)])
    preflight.check_ports([endpoint(port)])


def test_port_given_twice_out_of_range_or_at_no_address():
    (port,) = preflight.free_ports(1)
    with pytest.raises(ServingError, match=f"port {port} is used for both http and grpc"):
        preflight.check_ports([endpoint(port), endpoint(port, "grpc")])
    with pytest.raises(ServingError, match="not between 1 and 65535"):
        preflight.check_ports([endpoint(70000)])
    with pytest.raises(ServingError, match=r"cannot be opened.*another --http-port"):
        preflight.check_ports([Endpoint("http", "203.0.113.7", port, False)])


def test_free_ports_differ():
    assert len(set(preflight.free_ports(20))) == 20


def test_shared_memory_limits(monkeypatch):
    def have(mebibytes: int) -> None:
        monkeypatch.setattr(preflight, "shared_memory", lambda _path: (64 << 20, mebibytes << 20))

    have(8)
    with pytest.raises(ServingError, match=r"8 MiB free of 64 MiB.*--shm-size=2g") as error:
        preflight.check_shared_memory()
    one_line(error)
    have(64)
    assert "photos above about 1.0 megapixels will fail" in str(preflight.check_shared_memory())
    have(4096)
    assert preflight.check_shared_memory() is None
    assert preflight.SHM_RECOMMENDED / preflight.SHM_BYTES_PER_PIXEL > 3000 * 2000


def test_shared_memory_is_measured():
    size, free = preflight.shared_memory()
    assert size >= free > 0
    assert preflight.shared_memory(Path("/no/such/folder")) == (0, 0)


def test_arguments_in_both_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--model-repository models --http-port=9000 --reuse-grpc-port 1 --allow-metrics false"
    arguments = Arguments([*words.split(), "--model-store=more", "--log-verbose=1"])
    assert arguments.repositories == ["models", "more"]
    assert arguments.with_absolute_repositories(lambda path: path) == [
        "--model-repository",
        str(tmp_path / "models"),
        *words.split()[2:],
        f"--model-store={tmp_path / 'more'}",
        "--log-verbose=1",
    ]
    assert arguments.endpoints("127.0.0.1") == [
        Endpoint("http", "127.0.0.1", 9000, False),
        Endpoint("grpc", "127.0.0.1", 8001, True),
    ]
    with pytest.raises(ServingError, match="--grpc-port must be an integer, not 'x'"):
        Arguments(["--grpc-port", "x"]).endpoints("127.0.0.1")


def test_defaults_bind_loopback_and_yield_to_the_user():
    plain = launcher.default_words(Arguments([]), True)
    assert {f"--{n}-address=127.0.0.1" for n in ("http", "grpc", "metrics")} <= set(plain)
    # Triton's metrics follow an --http-address; ours must not stand in between.
    words = launcher.default_words(Arguments(["--http-address=0.0.0.0"]), True)
    assert not any("metrics-address" in word for word in words)
    external = launcher.default_words(Arguments([]), False)
    assert not any("address" in word for word in external)


def test_sweep_spares_living_runs_and_strangers(tmp_path):
    shm = tmp_path / "shm"
    shm.mkdir()
    living = rundir.RunFolder(tmp_path)
    dead = tmp_path / f"{rundir.FOLDER_PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "shm-region-prefix").write_text("pikfix-0123456789ab-")
    forged = tmp_path / f"{rundir.FOLDER_PREFIX}forged"
    forged.mkdir()
    (forged / "lock").touch()
    (forged / "shm-region-prefix").write_text("")
    for name in ("pikfix-0123456789ab-1", f"{living.shm_prefix}1", "other"):
        (shm / name).touch()
    try:
        assert rundir.sweep([tmp_path], shm) == 2
        assert sorted(p.name for p in shm.iterdir()) == sorted(["other", f"{living.shm_prefix}1"])
        assert living.path.is_dir() and not dead.exists() and not forged.exists()
    finally:
        living.remove()
    assert not living.path.exists()


def test_lock_outlives_its_maker_while_a_child_holds_it(tmp_path):
    """A launcher that was killed: its server still runs, and its regions are still in use."""
    run = rundir.RunFolder(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(run.lock_fd,)
    ) as child:
        os.close(run.lock_fd)
        assert rundir.sweep([tmp_path], tmp_path) == 0
        child.communicate(b"\n")
    assert rundir.sweep([tmp_path], tmp_path) == 1


def test_unfinished_run_folder_is_swept_after_an_hour(tmp_path):
    folder = tmp_path / f"{rundir.FOLDER_PREFIX}new"
    folder.mkdir()
    assert rundir.sweep([tmp_path], tmp_path) == 0
    past = time.time() - 2 * 3600
    os.utime(folder, (past, past))
    assert rundir.sweep([tmp_path], tmp_path) == 1


def test_regions_of_others_are_never_removed():
    with pytest.raises(ValueError, match="not the prefix"):
        rundir.remove_regions("pikfix-")


def test_backend_directory_is_private_and_complete(tmp_path):
    installation = embedded.find()
    assert installation.embedded
    backends = embedded.build_backends(installation, tmp_path)
    assert os.access(backends / "python" / embedded.STUB, os.X_OK)
    for name in ("python/libtriton_python.so", "onnxruntime/model.py"):
        assert (backends / name).is_file() and not (backends / name).is_symlink()
    env = embedded.environment(installation, link=lambda path: path)
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    library = embedded.libpython()
    assert library is not None and str(library.parent) in env["LD_LIBRARY_PATH"]
