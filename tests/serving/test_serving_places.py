"""Servers in places with awkward names, and starts that cannot succeed: at once, with a reason."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pikfix.serving import embedded, launcher, preflight, rundir, server
from pikfix.serving.arguments import Arguments
from pikfix.serving.errors import ServingError
from pikfix.serving.links import Links, is_plain
from pikfix.serving.server import start_server
from pikfix.serving.start_log import StartLog

pytestmark = pytest.mark.serving

# Every sign that a shell, a list of folders or a table might take for its own.
AWKWARD = 'it\'s (1) & co; $HOME "q" `x` #~*?[a]{b} \\ a:b \n 日本 ü \u00a0!|<>'

START = """
import sys
from pathlib import Path
from pikfix.serving.server import start_server

with start_server(sys.argv[1], supervise=False, ready_timeout_s=50) as server:
    print(server.health().state, sorted(server.stubs().values()), sys.prefix)
"""


def place(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_server_starts_from_anywhere(make_identity, identity_repository, tmp_path, nothing_left):
    """Repository, temporary folder, home and Python all lie behind awkward names."""
    repository = place(tmp_path / AWKWARD) / "models"
    identity_repository.rename(repository)
    environment = tmp_path / f"venv {AWKWARD}"
    environment.symlink_to(sys.prefix)
    done = subprocess.run(
        [str(environment / "bin/python"), "-c", START, os.path.relpath(repository, tmp_path)],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "VIRTUAL_ENV")},
            "TMPDIR": str(place(tmp_path / f"tmp {AWKWARD}")),
            "HOME": str(place(tmp_path / f"home {AWKWARD}")),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"healthy ['identity_0_0'] {environment}\n"
    assert nothing_left() == []


def test_plain_paths_stay_and_others_get_one_link_each(tmp_path):
    links = Links(tmp_path / "links")
    assert links(tmp_path / "models") == tmp_path / "models"
    assert not (tmp_path / "links").exists()
    awkward = place(tmp_path / AWKWARD)
    first = links(awkward)
    assert is_plain(first)
    assert first.resolve() == awkward.resolve()
    assert links(awkward) == first
    assert links(place(tmp_path / "a b")) != first


@pytest.mark.parametrize("sign", [" ", "'", "(", "&", ";", "$", '"', "\n", "ü", ":", "*", "~", "#"])
def test_signs_that_need_a_link(sign):
    assert not is_plain(f"/a/b{sign}c")


def test_run_folder_lies_where_the_name_is_plain(tmp_path, monkeypatch):
    bases = [place(tmp_path / "a b"), tmp_path / "not/there/yet", place(tmp_path / "second")]
    monkeypatch.setattr(rundir, "base_folders", lambda: bases)
    with rundir.RunFolder() as run:
        assert run.path.parent == bases[1]
    monkeypatch.setattr(rundir, "base_folders", lambda: bases[:1])
    with pytest.raises(ServingError, match="set TMPDIR to one that can be written to") as error:
        rundir.RunFolder()
    assert "\n" not in str(error.value)


def test_base_folders_exist_without_a_usable_temporary_folder(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(rundir.tempfile, "gettempdir", none)
    assert Path("/var/tmp") in rundir.base_folders()


DIES = {
    "exits": ("import os\nos._exit(3)\n", "ended with exit code 3 during the start"),
    "is killed": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
        "was ended by signal 9 during the start",
    ),
    "says why": (
        "import os, sys\nprint('MemoryError: no room', file=sys.stderr, flush=True)\nos._exit(1)\n",
        "ended with exit code 1 during the start: MemoryError: no room",
    ),
}


@pytest.mark.parametrize(("code", "reason"), DIES.values(), ids=DIES)
def test_dead_stub_ends_the_wait(make_identity, tmp_path, nothing_left, code, reason):
    """Triton itself would wait for ever."""
    repository = make_identity("identity", code)
    began = time.monotonic()
    with pytest.raises(ServingError) as error:
        start_server(repository, log_file=tmp_path / "log")
    assert time.monotonic() - began < 30
    assert str(error.value) == f"the process of identity {reason}; the log is {tmp_path / 'log'}"
    assert nothing_left() == []


def test_failed_model_ends_the_wait_for_the_others(identity_repository, make_identity, tmp_path):
    """One needs a package that is missing, the other one never comes to an end."""
    slow = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n"
    make_identity(
        "slow", f"{slow}        time.sleep(300)\n    def execute(self, r):\n        pass\n"
    )
    (identity_repository / "identity/1/model.py").write_text("import no_such_package\n")
    began = time.monotonic()
    with pytest.raises(ServingError) as error:
        start_server(identity_repository, log_file=tmp_path / "log")
    assert time.monotonic() - began < 30
    assert str(error.value) == (
        "model identity failed to load: Internal: ModuleNotFoundError: No module named "
        f"'no_such_package'; the log is {tmp_path / 'log'}"
    )


def test_wait_that_is_over_names_what_is_loading(make_identity, tmp_path):
    code = "import time\ntime.sleep(300)\n"
    with pytest.raises(ServingError, match=r"not ready after 3 s: still loading slow; its log is"):
        start_server(make_identity("slow", code), ready_timeout_s=3, log_file=tmp_path / "log")


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_port_that_is_taken_in_between(identity_repository, tmp_path, monkeypatch, name):
    """After the look at it and before the server opens it; gRPC may already answer by then."""
    unseeing = "import pikfix.serving.preflight as p; p.check_ports = list; "
    monkeypatch.setattr(server, "_LAUNCHER", unseeing + server._LAUNCHER)
    monkeypatch.setattr(preflight, "check_ports", list)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(ServingError, match=f"^{name} port {port} on 127.0.0.1 is in use; stop"):
            start_server(identity_repository, log_file=tmp_path / "log", **{f"{name}_port": port})


def test_model_whose_name_no_link_can_stand_in_for(make_identity):
    repository = make_identity("my model", "")
    words = [f"--model-repository={repository}"]
    with pytest.raises(ServingError, match="the model 'my model', whose name the python backend"):
        launcher.check(Arguments(words), embedded.find())
    config = repository / "my model/config.pbtxt"
    config.write_text('platform: "ensemble"\n')
    preflight.check_names(str(repository), every_backend=True)
    config.write_text('backend: "onnxruntime"\n')
    preflight.check_names(str(repository), every_backend=False)
    with pytest.raises(ServingError, match="rename it"):
        preflight.check_names(str(repository), every_backend=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "echo 'stub: error while loading shared libraries: libpython3.11.so.1.0: no such file' "
            ">&2; exit 127",
            "error while loading shared libraries: libpython3.11.so.1.0: no such file",
        ),
        (
            "echo \"stub: /lib/libc.so.6: version 'GLIBC_2.38' not found\" >&2; exit 1$EXTRA",
            "version 'GLIBC_2.38' not found",
        ),
        ("kill -9 $$", "it ended with -9"),
    ],
)
def test_stub_that_cannot_run(tmp_path, text, reason):
    stub = tmp_path / "stub"
    stub.write_text(f"#!/bin/sh\n{text}\n")
    stub.chmod(0o755)
    with pytest.raises(ServingError) as error:
        embedded.check_stub(stub, {"PATH": "/usr/bin:/bin", "EXTRA": "2"})
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_stub_that_is_not_executable_or_not_whole(tmp_path):
    found = embedded.find()
    assert found.root is not None
    whole = embedded.stub_for_this_python(found.root)
    assert whole is not None
    environment = embedded.environment(found, link=lambda path: path)
    embedded.check_stub(whole, environment)
    stub = tmp_path / "stub"
    stub.write_bytes(whole.read_bytes()[:100])
    for mode, reason in ((0o644, "Permission denied"), (0o755, "Exec format error")):
        stub.chmod(mode)
        with pytest.raises(ServingError, match=f"python steps cannot start: {reason}"):
            embedded.check_stub(stub, environment)


def test_no_room_for_the_servers_files(identity_repository, tmp_path, monkeypatch):
    def full(_installation: object, _folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(embedded, "build_backends", full)
    arguments = Arguments([f"--model-repository={identity_repository}"])
    with (
        rundir.RunFolder(tmp_path) as run,
        pytest.raises(ServingError, match=f"put into {tmp_path}: No space left on device; make"),
    ):
        launcher.prepare(arguments, embedded.find(), run)


def test_no_room_for_the_log(identity_repository, monkeypatch):
    def full(**_words: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr(server.tempfile, "mkdtemp", full)
    with pytest.raises(ServingError, match="log: No space left on device; make room"):
        start_server(identity_repository)
    with pytest.raises(ServingError, match="cannot be written: Is a directory"):
        start_server(identity_repository, log_file=identity_repository)


def test_repository_that_cannot_be_read(tmp_path, identity_repository, monkeypatch):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ServingError, match=r"cannot be read|does not exist"):
        preflight.check_repository(str(loop))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ServingError, match="is no folder"):
        preflight.check_repository(str(file))
    real = Path.open

    def closed(path: Path, *words: object, **more: object) -> object:
        if path.name == "model.py":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *words, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(ServingError, match=r"model\.py: Permission denied; give another") as error:
        preflight.check_repository(str(identity_repository))
    assert "\n" not in str(error.value)


def test_shared_memory_that_is_missing_or_closed(tmp_path, monkeypatch):
    with pytest.raises(ServingError, match="is missing; mount it"):
        preflight.check_shared_memory(tmp_path / "none")
    monkeypatch.setattr(preflight.os, "access", lambda _path, _mode: False)
    with pytest.raises(ServingError, match="cannot be written to; mount it"):
        preflight.check_shared_memory()


def test_without_bash(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServingError, match="install bash"):
        preflight.check_shell()


def test_log_tells_only_of_its_own_start(tmp_path):
    log = tmp_path / "log"
    before = "tritonserver: an older failure\n"
    log.write_text(before + "tritonserver: warning: little room\nlast words\n\n")
    assert (
        StartLog(log, len(before))
        .why_ended()
        .startswith("the server ended before it was ready: last words; the log is")
    )
    assert StartLog(log, 0).why_ended() == "an older failure"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RLIMIT_NOFILE", 40, "only 40 files may be open at a time and the server needs 128"),
        ("RLIMIT_FSIZE", 2 << 20, "files may hold at most 2048 KiB here and the server's shared"),
    ],
)
def test_limits_that_end_a_start(monkeypatch, name, value, said):
    """The server itself dies of them with a word on something else."""

    def limit(which: int) -> tuple[int, int]:
        none = resource.RLIM_INFINITY
        return (value, none) if which == getattr(resource, name) else (none, none)

    monkeypatch.setattr(resource, "getrlimit", limit)
    with pytest.raises(ServingError, match=f"^{said}.*raise the limit") as error:
        preflight.check_limits()
    assert "\n" not in str(error.value)


def test_limits_that_large_photos_exceed(monkeypatch, identity_repository):
    limits = {resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_FSIZE: 64 << 20}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    (warning,) = launcher.check(
        Arguments([f"--model-repository={identity_repository}"]), embedded.find()
    )
    assert warning.startswith("files may hold at most 64 MiB here: photos above about 1.0 megapix")
    limits[resource.RLIMIT_FSIZE] = resource.RLIM_INFINITY
    assert preflight.check_limits() is None


LOW = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))\n"


def test_a_low_limit_is_one_line(identity_repository, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOW + START, str(identity_repository)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ServingError: only 50 files may be open at a time" in done.stderr
