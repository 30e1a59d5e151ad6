import json
import subprocess
import sys

import numpy as np
import pytest
from outside_photos import bordered, text_page
from PIL import Image

from pikfix.cli.main import main
from pikfix.cli.references import choose_here
from pikfix.references.library import CANDIDATES, DEFAULT_COUNT, Library, suitable
from pikfix.references.pictures import read_picture


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(["references", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_build_and_rank(run, pictures, tmp_path, checkpoint, samples):
    library = tmp_path / "library"
    code, out, err = run("build", pictures, "-o", library, "--backbone", checkpoint)
    assert code == 0
    assert out == f"{library}: 18 pictures (18 added, 0 kept, 0 removed, 3 left out)\n"
    assert len(err.splitlines()) == 4
    assert err.splitlines()[-1] == "1 file left out: 1 .txt"
    assert "it is grey" in err

    photo = tmp_path / "photo.png"
    Image.fromarray(samples["coffee_0.png"]).convert("L").save(photo)
    sheet = tmp_path / "sheet.png"
    words = ("rank", photo, "--library", library, "--top", 4)
    code, out, err = run(*words, "--json", "--sheet", sheet)
    assert code == 0
    found = json.loads(out)
    assert found["photo"] == str(photo)
    assert [row["rank"] for row in found["references"]] == [1, 2, 3, 4]
    scores = [row["score"] for row in found["references"]]
    assert scores == sorted(scores, reverse=True)
    assert "coffee_0.png" not in {row["name"] for row in found["references"]}
    drawn = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    colour = np.ptp(drawn, axis=2).max(axis=0)
    assert colour[: 256 + 8].max() == 0  # the photo, in grey
    assert colour[256 + 16 :].max() > 50

    assert len(found["taken"]) == DEFAULT_COUNT
    assert found["taken"] == [
        match.name
        for match in suitable(
            Library(library).rank(read_picture(photo), CANDIDATES), found["threshold"]
        )[:DEFAULT_COUNT]
    ]
    marked = {row["name"] for row in found["references"] if row["taken"]}
    assert marked == set(found["taken"]) & {row["name"] for row in found["references"]}

    code, out, err = run(*words)
    lines = out.splitlines()
    assert [line.split()[-2] for line in lines] == [f"{score:.4f}" for score in scores]
    assert [" * " in line for line in lines] == [row["taken"] for row in found["references"]]
    assert lines[0].endswith(found["references"][0]["path"])


def test_an_unsuitable_best_is_told(run, library, built):
    manifest = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps({**manifest, "threshold": 0.99}))
    code, out, err = run("rank", built[1] / "coffee_0.png", "--library", library, "--top", 1)
    assert (code, len(out.splitlines())) == (0, 1)
    assert "none suits" in err
    photo = (built[1] / "coffee_0.png").read_bytes()
    assert choose_here(library)(photo) == []
    assert len(choose_here(library, force=True)(photo)) == DEFAULT_COUNT
    assert len(choose_here(library, force=True, count=3)(photo)) == 3


def test_a_border_is_no_part_of_the_comparison(run, library, built, tmp_path):
    """A scan gets the references of the photo inside, as on a server; the whole one on demand."""
    with Image.open(built[1] / "coffee_0.png") as image:
        inside = np.asarray(image.convert("L"))
    photo, scan = tmp_path / "photo.png", tmp_path / "scan.png"
    Image.fromarray(inside).save(photo)
    Image.fromarray(bordered(inside, (40, 40, 40, 40))).save(scan)

    def sent(path, **settings):
        chosen = choose_here(library, force=True, count=3, **settings)(path.read_bytes())
        return [(one.name, one.score) for one in chosen]

    assert sent(scan) == sent(photo)
    assert sent(scan, whole=True) != sent(photo)
    words = ("--library", library, "--json")
    ranked = [json.loads(run("rank", path, *words)[1]) for path in (photo, scan)]
    assert ranked[0]["references"] == ranked[1]["references"]
    assert ranked[0]["taken"] == ranked[1]["taken"]


def test_a_page_of_text_gets_no_references(run, library, tmp_path):
    page = tmp_path / "page.png"
    Image.fromarray(text_page()).save(page)
    assert choose_here(library, force=True)(page.read_bytes()) == ()
    assert len(choose_here(library, force=True, whole=True)(page.read_bytes())) == DEFAULT_COUNT
    code, out, err = run("rank", page, "--library", library, "--top", 2)
    assert (code, len(out.splitlines()), " * " in out) == (0, 2, False)
    assert "looks like text or a drawing" in err


def test_report_names_what_was_chosen_here_and_sent(run, library, built, tmp_path, capsys):
    from fake_triton import FakeTriton

    photo = built[1] / "coffee_0.png"
    (sent,) = choose_here(library, force=True, count=1)(photo.read_bytes())
    server = FakeTriton()
    try:
        words = ("restore", photo, "-o", tmp_path / "out.png", "--url", server.url)
        code = main([*map(str, words), "--library", str(library), "--force-color", "--json"])
        out, err = capsys.readouterr()
    finally:
        server.close()
    assert code == 0, err
    (used,) = json.loads(out)["report"]["references"]
    assert (used["source"], used["name"], used["score"]) == ("library", sent.name, sent.score)
    ranked = json.loads(run("rank", photo, "--library", library, "--json")[1])
    scores = {row["name"]: row["score"] for row in ranked["references"]}
    assert used["score"] == pytest.approx(scores[used["name"]], abs=1e-4)
    assert 0 < used["share"] <= 1


def test_failures_take_one_line(run, tmp_path, pictures, library):
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        (("build", empty, "-o", tmp_path / "x"), "there are no pictures"),
        (("build", pictures, "-o", tmp_path / "x", "--backbone", "none.pth"), "no such file"),
        (("rank", pictures / "coffee_0.png", "--library", empty), "is no library"),
        (("rank", pictures / "broken.jpg", "--library", library), "broken.jpg"),
        (("rank", pictures / "none.jpg", "--library", library), "No such file"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert said in err


@pytest.mark.parametrize(
    "module", ["pikfix.references", "pikfix.references.manifest", "pikfix.cli.references"]
)
def test_light_modules_load_no_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
