"""What people read: links that lead somewhere, commands that are taken, figures that agree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from pikfix.cli.main import build

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "deploy/*.md", "checkpoints/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[list[str]]:
    """The lines of the page's shell snippets as words, without comments."""
    found = []
    for snippet in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in snippet.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words:
                    found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_taken_as_written(page: Path) -> None:
    """Parsed by the command line itself: every command, option and kind of value."""
    root = typer.main.get_command(build(None, load_all=True))
    for words in commands(page):
        if Path(words[0]).name == "pikfix":
            command, label, *rest = root, *words
            while hasattr(command, "commands"):
                label, *rest = rest
                if label not in command.commands:  # `pikfix batch` has a usual one
                    label, rest = "run", [label, *rest]
                command = command.commands[label]
            command.make_context(label, rest)
        elif words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert next(w for w in words[1:] if "=" not in w) in targets
        elif words[0] in {"python", ".venv/bin/python"} and not words[1].startswith("-"):
            assert (ROOT / words[1]).is_file(), words[1]


def test_the_links_of_src_are_the_packages() -> None:
    listed = re.findall(
        r'^    "pikfix\.(\w+)",', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    links = {link.name: link.readlink() for link in (ROOT / "src" / "pikfix").iterdir()}
    assert {name: str(target) for name, target in links.items() if name != "__pycache__"} == {
        name: f"../../{name}" for name in listed
    }


def test_editors_find_the_code_where_python_does() -> None:
    """An editable install is a folder on the path: no import hook, which editors cannot follow."""
    import pikfix.kernels

    assert Path(pikfix.kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "checkpoints"], ids=name)
def test_a_model_card_has_the_fields_that_hubs_read(page: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, front, text = page.read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert {"license", "library_name", "pipeline_tag", "datasets", "metrics"} <= set(fields)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'license = "{fields["license"].upper()}"' in project
    (entry,) = fields["model-index"]
    assert entry["name"] == page.stem
    for result in entry["results"]:
        for metric in result["metrics"]:
            digits = 2 if metric["type"] == "psnr" else 4
            assert f"**{metric['value']:.{digits}f}**" in text, metric
