"""The command line as a whole: help, versions, exit codes, how errors are said."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from pikfix.cli import main as cli
from pikfix.cli.problems import CommandError, UsageError, explain


@pytest.fixture
def call(capsys):
    def run(*words):
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def command(monkeypatch):
    """Put a command into the table that does what a test wants."""

    def put(function):
        module = type(sys)("a_command")
        module.command = function
        monkeypatch.setitem(sys.modules, "a_command", module)
        monkeypatch.setattr(cli, "COMMANDS", {"try": ("a_command", "Try."), **cli.COMMANDS})

    return put


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(call, words):
    code, out, err = call(*words)
    assert code == 0
    assert err == ""
    for name, (_, line) in cli.COMMANDS.items():
        assert f"  {name} " in out
        assert line in out


@pytest.mark.parametrize("name", ["serve", "restore", "export", "doctor"])
def test_every_command_has_help(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    assert f"Usage: pikfix {name}" in out
    assert "  -h, --help" in out


def test_the_contract_of_options(call):
    wanted = {
        "serve": "--model-repository --grpc-port --http-port --metrics-port",
        "restore": "-o --reference --no-color --url --json",
        "export": "--runtime --device --precision -o",
    }
    for name, options in wanted.items():
        _, out, _ = call(name, "--help")
        for option in options.split():
            assert f"{option} " in out or f"{option}," in out


def test_version(call):
    assert call("--version") == (0, f"pikfix {importlib.metadata.version('pikfix')}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["restor"], "'restor'"),
        (["--colour"], "--colour"),
        (["restore"], "PHOTO_OR_FOLDER"),
        (["restore", "a.jpg"], "--out"),
        (["restore", "a.jpg", "-o", "b", "--sharpen"], "--sharpen"),
        (["restore", "a.jpg", "-o", "b", "--quality", "0"], "--quality"),
        (["restore", "a.jpg", "-o", "b", "--format", "gif"], "gif"),
        (["restore", "a.jpg", "-o", "b", "--jobs", "0"], "--jobs"),
        (["export", "a", "--runtime", "tflite"], "tflite"),
        (["serve", "--grpc-port", "70000"], "--grpc-port"),
        (["serve", "now"], "now"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(call, words, said):
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("pikfix: ")
    assert err.count("\n") == 1
    assert "--help)" in err


def test_help_loads_no_command_and_no_heavy_package():
    program = (
        "import sys\n"
        "from pikfix.cli.main import COMMANDS, main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'grpc', 'tritonclient', 'PIL', 'rich', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "loaded = [module for module, _ in COMMANDS.values() if module in sys.modules]\n"
        "print(loaded, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n[]\n"


def test_restore_needs_no_torch():
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pikfix.cli.main import main\n"
        "assert main(['restore', '--help']) == 0\n"
        "assert main(['restore', 'missing.jpg', '-o', 'x.jpg', '--url', 'localhost:1']) == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CommandError("the tap is closed"), 1, "pikfix: the tap is closed\n"),
        (FileNotFoundError(2, "No such file", "a.jpg"), 1, "pikfix: a.jpg: No such file\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "this needs torch, which is not installed; run: pip install 'pikfix[export]'\n",
        ),
        (UsageError("not so"), 2, "pikfix: not so (see pikfix try --help)\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_end_in_one_line(call, command, error, code, said):
    def fail() -> None:
        raise error

    command(fail)
    found = call("try")
    assert found[0] == code
    assert found[2].endswith(said)


def test_a_defect_keeps_its_traceback(command):
    def fail() -> None:
        raise ValueError("a defect")

    command(fail)
    with pytest.raises(ValueError, match="a defect"):
        cli.main(["try"])


def test_errors_of_the_package_are_for_users():
    from pikfix.client import ServerUnreachableError

    assert "pikfix serve" in explain(ServerUnreachableError("refused"))
    assert explain(ModuleNotFoundError("No module named 'gone'", name="gone")) is None


def test_a_command_with_sub_commands(call, monkeypatch):
    import typer

    module = type(sys)("a_group")
    module.app = typer.Typer()

    @module.app.command("one")
    def one() -> None:
        print("one")

    @module.app.command("two")
    def two() -> None:
        print("two")

    monkeypatch.setitem(sys.modules, "a_group", module)
    monkeypatch.setattr(cli, "COMMANDS", {"group": ("a_group", "A group."), **cli.COMMANDS})
    assert call("group", "two") == (0, "two\n", "")
    assert call("group", "three")[0] == 2
    assert "A group." in call("--help")[1]


def test_output_into_a_closed_pipe_is_no_traceback():
    program = f"{sys.executable} -m pikfix.cli.main restore --help | head -c 1"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_doctor_describes_and_says_whether_it_can_serve(call, tmp_path, monkeypatch):
    """The text and the JSON carry the same facts; a missing repository is a failure."""
    import json
    import platform

    monkeypatch.chdir(tmp_path)
    code, out, _ = call("doctor", "--model-repository", str(tmp_path / "gone"))
    assert code == 1
    assert f"python      {platform.python_version()}" in out
    assert f"package     numpy {importlib.metadata.version('numpy')}" in out
    assert "problem     " in out
    assert "gone" in out
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert found["repository"] is None
    assert code == (1 if found["problems"] else 0)
    code, text, _ = call("doctor")
    assert ("ready to serve" in text) == (not found["problems"])
    for problem in found["problems"]:
        assert problem in text


def test_doctor_looks_at_the_repository_beside_it(call, tmp_path, monkeypatch):
    import json

    (tmp_path / "model_repository").mkdir()
    monkeypatch.chdir(tmp_path)
    found = json.loads(call("doctor", "--json")[1])
    assert found["repository"]["path"] == str(tmp_path / "model_repository")


def test_export_says_why_it_cannot(call, tmp_path):
    pytest.importorskip("torch")
    code, out, err = call("export", str(tmp_path / "gone.safetensors"), "-o", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert "gone.safetensors" in err
    assert not (tmp_path / "out").exists()


def test_export_passes_its_choices_on(call, monkeypatch, tmp_path):
    import json

    import pikfix.export

    asked = {}

    class Manifest:
        def to_dict(self):
            return {"made": True}

    def export(checkpoint, repository, **options):
        options.pop("progress")("exporting restore")
        asked.update(options, checkpoint=checkpoint, repository=repository)
        return Manifest()

    monkeypatch.setattr(pikfix.export, "export_checkpoint", export)
    code, out, err = call(
        *("export", "a.safetensors", "--runtime", "tensorrt", "--device", "cuda"),
        *("--precision", "fp16", "--similarity", "kernel", "--target", "ngc"),
        *("--accelerator", "tensorrt", "--engine-builder", "torch"),
        *("-o", str(tmp_path), "--json"),
    )
    assert (code, json.loads(out), err) == (0, {"made": True}, "exporting restore\n")
    assert asked.pop("engines").builder == "torch"
    assert {key: str(value) for key, value in asked.items()} == {
        "checkpoint": "a.safetensors",
        "repository": str(tmp_path),
        "runtime": "tensorrt",
        "device": "cuda",
        "precision": "fp16",
        "similarity": "kernel",
        "target": "ngc",
        "accelerator": "tensorrt",
        "instances": "None",
        "file_instances": "None",
    }


def test_serve_without_a_repository(call, tmp_path):
    code, _, err = call("serve", "--model-repository", str(tmp_path / "gone"))
    assert code == 1
    assert "does not exist" in err
