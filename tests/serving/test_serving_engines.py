"""Engines and the TensorRT of the server that is to load them: said before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pikfix.serving import doctor, embedded, engines, launcher
from pikfix.serving.arguments import Arguments
from pikfix.serving.embedded import Installation
from pikfix.serving.errors import ServingError


def write_engine(
    repository: Path, name: str, needed: str | None, backend: str = "tensorrt"
) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.plan").touch()
    parameter = ""
    if needed is not None:
        parameter = f'parameters {{ key: "tensorrt" value {{ string_value: "{needed}" }} }}\n'
    text = f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 4\n{parameter}'
    (repository / name / "config.pbtxt").write_text(text)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """A server as the NGC container has it, with TensorRT 11.1.2 and, beside it, an older one."""
    root = tmp_path / "opt" / "tritonserver"
    backend = root / "backends" / "tensorrt"
    libraries = tmp_path / "lib"
    for folder in (root / "bin", backend, libraries):
        folder.mkdir(parents=True)
    (backend / "libtriton_tensorrt.so").write_bytes(b"\x7fELF\0libnvinfer.so.11\0libcudart.so.13\0")
    for version in ("11.1.2", "10.13.3"):
        (libraries / f"libnvinfer.so.{version}").touch()
        (libraries / f"libnvinfer.so.{version.split('.')[0]}").symlink_to(
            f"libnvinfer.so.{version}"
        )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    binary = root / "bin" / "tritonserver"
    binary.write_bytes(b"\x7fELF")
    binary.chmod(0o755)
    return Installation(binary, embedded=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def said(repository: Path, server: Installation, *words: str) -> str | None:
    try:
        engines.check_engines(str(repository), server, Arguments(words))
    except ServingError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def test_the_version_is_that_of_the_library_the_backend_links_to(container: Installation) -> None:
    assert engines.tensorrt_version(container.binary.parents[1] / "backends") == (11, 1, 2)


@pytest.mark.parametrize(
    ("needed", "loads"),
    [
        ("==11.1.2.7", True),
        (">=11.1.2.7", True),
        (">=11.0.0.114", True),
        (">=10.13.3.9", True),
        ("==11.0.0.114", False),
        ("==11.2.0.1", False),
        (">=11.2.0.1", False),
        (">=11.10.0.1", False),  # numbers, not text
        (">=12.0.0", False),
        (None, True),  # another's engine
    ],
)
def test_engines_of_another_version_are_refused_in_a_line(
    container: Installation, repository: Path, needed: str | None, loads: bool
) -> None:
    write_engine(repository, "restore", needed)
    found = said(repository, container)
    assert (found is None) == loads
    if found is not None:
        assert "restore of" in found
        assert f"TensorRT {str(needed)[2:]} and the server has 11.1.2" in found
        wanted = "exactly that version" if str(needed).startswith("==") else "or a newer version"
        assert wanted in found


def test_a_server_without_the_backend_is_named(
    container: Installation, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("restore", "colorize"):
        write_engine(repository, name, ">=11.0.0")
    write_engine(repository, "similarity", None, backend="python")
    wheel = embedded.wheel()
    assert wheel is not None
    found = said(repository, wheel)
    assert found is not None and "colorize, restore of" in found
    assert "the embedded server has no backend for them" in found
    with pytest.raises(ServingError, match="has no backend for them"):
        launcher.check(Arguments([f"--model-repository={repository}"]), wheel)
    monkeypatch.setattr(embedded, "on_path", lambda: None)
    assert found in doctor.examine(repository).problems
    (container.binary.parents[1] / "backends" / "tensorrt" / "libtriton_tensorrt.so").unlink()
    assert str(container.binary) in str(said(repository, container))


def test_backends_elsewhere_are_looked_at(container: Installation, repository: Path) -> None:
    write_engine(repository, "restore", "==11.1.2")
    backends = container.binary.parents[1] / "backends"
    moved = backends.rename(backends.with_name("others"))
    assert said(repository, container) is not None
    assert said(repository, container, f"--backend-directory={moved}") is None


def test_what_cannot_be_known_keeps_no_server_from_starting(
    container: Installation, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engine(repository, "restore", ">=99.0.0")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert said(repository, container) is None
    (repository / "restore" / "config.pbtxt").write_text("name: [")
    assert engines.needs(str(repository)) == []
    assert engines.needs("s3://bucket/models") == []


def test_a_server_is_told_to_run_the_code_of_engines_that_have_some(repository: Path) -> None:
    arguments = Arguments([f"--model-repository={repository}"])
    write_engine(repository, "similarity", "==11.0.0")
    write_engine(repository, "colorize", ">=11.0.0", backend="onnxruntime")
    assert engines.words_for(arguments) == []
    write_engine(repository, "restore", ">=11.0.0")
    assert engines.words_for(arguments) == ["--backend-config=tensorrt,version-compatible=true"]
    given = "--backend-config=tensorrt,version-compatible=false"
    assert engines.words_for(Arguments([*arguments.words, given])) == []
