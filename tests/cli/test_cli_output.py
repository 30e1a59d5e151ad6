"""What a reader of the output meets: broken pipes, odd names, files left out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from results import pictures


@pytest.mark.parametrize("words", [["--json"], []], ids=["json", "lines"])
def test_a_reader_that_leaves_ends_the_run(begin, server, fake, picture, tmp_path, words):
    import time

    def slowly(request, context):
        time.sleep(0.05)
        return fake.answer(request, context)

    server.answer = slowly
    for number in range(12):
        picture(tmp_path / "in" / f"{number:02}.jpg", seed=number)
    run = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--url", server.url),
        *("--jobs", "2", *words),
    )
    first = run.stdout.readline()
    assert "00.jpg" in first or "01.jpg" in first
    run.stdout.close()
    run.wait(timeout=30)
    err = run.stderr.read()
    assert run.returncode == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert "nobody reads the output any more" in err
    # What is there is whole; what is not is named; nothing is lost between the two.
    done = pictures(tmp_path / "out")
    named = sorted(
        line.rpartition("/")[2].partition(":")[0]
        for line in err.splitlines()
        if line.endswith(": not restored")
    )
    assert sorted(done + named) == [f"{number:02}.jpg" for number in range(12)]
    assert 1 <= len(done) < 12
    for name in done:
        Image.open(tmp_path / "out" / name).load()
    assert f"{len(done)} restored, {len(named)} unfinished in" in err


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["doctor"]])
def test_other_commands_end_quietly_too(begin, words):
    run = begin(*words, stdout=subprocess.PIPE)
    run.stdout.close()
    run.wait(timeout=60)
    assert run.returncode == 141
    assert run.stderr.read() == ""


def test_a_full_disk_under_stdout_is_one_line(begin):
    with Path("/dev/full").open("w") as full:
        run = begin("--help", stdout=full)
        run.wait(timeout=60)
    assert run.returncode == 1
    assert run.stderr.read() == "pikfix: No space left on device\n"


def test_a_name_with_control_characters_stays_one_line(restore, picture, tmp_path):
    odd = "a\nb\t\x1b[31m\u202e.jpg"
    picture(tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / odd)
    (tmp_path / "in" / "c\rd.jpg").write_text("no picture")
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    escaped = r"a\nb\t\x1b[31m\u202e.jpg"
    assert done.stdout == f"{tmp_path}/in/{escaped} -> {tmp_path}/out/{escaped}\n"
    assert rf"{tmp_path}/in/c\rd.jpg: pikfix_photo" in done.stderr
    assert not {"\x1b", "\r", "\t"} & set(done.stderr)
    assert (tmp_path / "out" / odd).is_file()
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert rf"{escaped} exists already" in done.stderr
    assert done.stderr.count("\n") == 1
    done = restore(tmp_path / "in" / odd, "-o", tmp_path / "out2", "--json")
    assert json.loads(done.stdout)["photo"] == str(tmp_path / "in" / odd)


def test_what_is_left_out_is_counted(restore, picture, tmp_path):
    picture(tmp_path / "in" / "scan.jpg").rename(tmp_path / "in" / "scan")
    for name in ("a.txt", "b.TXT", "c.mp4"):
        (tmp_path / "in" / name).write_text("x")
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["restored"]
    assert "3 files left out: 2 .txt, 1 .mp4\n" in done.stderr
    (tmp_path / "in" / "scan").unlink()
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "no pictures in " + str(tmp_path / "in") + (" (3 files left out: 2 .txt, 1 .mp4)\n")
    )


def test_one_stem_in_several_formats_loses_nothing(restore, picture, tmp_path):
    for seed, name in enumerate(["a.bmp", "a.png", "a.gif", "a.jpg"]):
        picture(tmp_path / "in" / name, seed=seed)
    words = (tmp_path / "in", "-o", tmp_path / "out")
    done = restore(*words)
    assert done.returncode == 0, done.stderr
    names = ["a.bmp.png", "a.gif.png", "a.jpg", "a.png"]
    assert pictures(tmp_path / "out") == names
    done = restore(*words, "--skip-existing")
    assert done.returncode == 0
    assert "4 skipped" in done.stderr


def test_the_help_tells_the_bound_that_is_exported(pikfix):
    from pikfix.export.configs import ServingSettings

    settings = ServingSettings()
    for command, said in (
        ("serve", f"of decode_photo says, {settings.max_in_flight} as"),
        ("export", f"On a CPU {settings.max_in_flight} photos are worked on at a time"),
    ):
        text = " ".join(pikfix(command, "--help").stdout.split())
        assert said in text
        assert "max_in_flight" in text
