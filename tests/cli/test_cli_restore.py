"""``pikfix restore`` as a process, against a gRPC server."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def names(folder):
    """The pictures in a folder; sidecars, see test_cli_provenance.py, are left out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(
        str(path.relative_to(folder)) for path in files if not path.name.endswith(".pikfix.json")
    )


PIKFIX = Path(sys.executable).with_name("pikfix")


def sent_options(server):
    from fake_triton import inputs_of

    return [json.loads(inputs_of(one)["options"].item()) for one in server.requests]


def test_a_folder(restore, server, picture, tmp_path):
    for number, name in enumerate(["a.jpg", "b/c.png", "b/d/e.tif", "f.gif"]):
        picture(tmp_path / "in" / name, seed=number)
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == ["a.jpg", "b/c.png", "b/d/e.tif", "f.gif.png"]
    for name, format in [("a.jpg", "JPEG"), ("b/c.png", "PNG"), ("b/d/e.tif", "TIFF")]:
        with Image.open(tmp_path / "out" / name) as image:
            assert (image.format, image.size, image.mode) == (format, (48, 32), "L")
    lines = done.stdout.splitlines()
    assert sorted(lines)[0] == f"{tmp_path}/in/a.jpg -> {tmp_path}/out/a.jpg"
    assert len(lines) == 4
    # One warning for all, and the summary; no progress bar and no escape codes in a pipe.
    assert "\x1b" not in done.stderr
    assert "warning on 4 photos: no reference: left grey" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("4 restored in ")


def test_one_bad_file_among_ten_good_ones(restore, picture, tmp_path):
    for number in range(9):
        picture(tmp_path / "in" / f"{number}.jpg", seed=number)
    (tmp_path / "in" / "bad.jpg").write_text("not a picture")
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert names(tmp_path / "out") == [f"{number}.jpg" for number in range(9)]
    (complaint,) = [line for line in done.stderr.splitlines() if "bad.jpg" in line]
    assert complaint.startswith(f"{tmp_path}/in/bad.jpg: ")
    assert "step decode_photo" in complaint
    assert "9 restored, 1 failed in" in done.stderr


def test_one_photo_with_references_and_options(restore, server, fake, picture, tmp_path):
    photo = picture(tmp_path / "a.jpg")
    first, second = picture(tmp_path / "r1.png", seed=1), picture(tmp_path / "r2.png", seed=2)
    done = restore(
        *(photo, "-o", tmp_path / "b.webp", "--reference", first, "--reference", second),
        *("--quality", "80"),
    )
    assert done.returncode == 0, done.stderr
    inputs = fake.inputs_of(server.requests[0])
    assert inputs["photo"].item() == photo.read_bytes()
    assert inputs["reference"].tolist() == [[first.read_bytes(), second.read_bytes()]]
    assert sent_options(server) == [{"quality": 80, "format": "webp"}]
    with Image.open(tmp_path / "b.webp") as image:
        assert image.format == "WEBP"


def test_what_is_left_as_it_is_is_not_counted_as_restored(restore, picture, tmp_path):
    picture(tmp_path / "in/a.png")
    with Image.open(tmp_path / "in/a.png") as image:
        text = PngInfo()
        text.add_text("content", "graphic")
        image.save(tmp_path / "in/page.png", pnginfo=text)
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{tmp_path / 'in/a.png'} -> {tmp_path / 'out/a.png'}",
        f"{tmp_path / 'in/page.png'} -> {tmp_path / 'out/page.png'} (left as it is)",
    ]
    assert "1 restored, 1 left in" in done.stderr
    done = restore(tmp_path / "in/page.png", "-o", tmp_path / "page.png", "--json")
    said = json.loads(done.stdout)
    assert (said["status"], said["output"]) == ("left", str(tmp_path / "page.png"))
    assert said["report"]["photo"]["content"] == "graphic"


def test_force_photo_is_passed_on(restore, server, picture, tmp_path):
    done = restore(picture(tmp_path / "a.jpg"), "-o", tmp_path / "out", "--force-photo")
    assert done.returncode == 0, done.stderr
    assert sent_options(server)[0]["force_photo"] is True


def test_force_color_is_passed_on(restore, server, picture, tmp_path):
    done = restore(picture(tmp_path / "a.jpg"), "-o", tmp_path / "out", "--force-color")
    assert done.returncode == 0, done.stderr
    assert sent_options(server)[0]["force_color"] is True


def test_options_for_archives_are_passed_on(restore, server, picture, tmp_path):
    words = ("--profile", "srgb", "--depth", "16", "--pages", "first", "--keep-color")
    words += ("--strength", "0.5", "--color-strength", "0", "--no-faces")
    done = restore(picture(tmp_path / "a.png"), "-o", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert sent_options(server)[0] == {
        **{"format": "png", "profile": "srgb", "depth": 16},
        **{"pages": "first", "keep_color": True, "strength": 0.5, "color_strength": 0.0},
        "faces": False,
    }
    for wrong in (["--strength", "1.1"], ["--depth", "12"], ["--keep-color", "--no-color"]):
        done = restore(tmp_path / "a.png", "-o", tmp_path / "other", *wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("pikfix: ")


def test_no_color_sends_no_reference(restore, server, picture, tmp_path):
    photo = picture(tmp_path / "a.jpg")
    done = restore(photo, "-o", tmp_path / "out", "--no-color", "--reference", photo)
    assert done.returncode == 0, done.stderr
    assert [one.name for one in server.requests[0].inputs] == ["photo", "options"]
    assert sent_options(server)[0]["color"] is False


def test_json_is_one_object_per_photo(restore, picture, tmp_path):
    for name in ["a.jpg", "b.png"]:
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"x")
    picture(tmp_path / "out" / "b.png")
    done = restore(
        *(tmp_path / "in", tmp_path / "gone.jpg", "-o", tmp_path / "out"),
        *("--json", "--skip-existing"),
    )
    assert done.returncode == 1
    found = {Path(one["photo"]).name: one for one in map(json.loads, done.stdout.splitlines())}
    assert {name: one["status"] for name, one in found.items()} == {
        "a.jpg": "restored",
        "b.png": "skipped",
        "bad.jpg": "failed",
        "gone.jpg": "failed",
    }
    assert found["a.jpg"]["output"] == str(tmp_path / "out" / "a.jpg")
    assert found["a.jpg"]["report"]["result"] == {"width": 48, "height": 32, "format": "jpeg"}
    assert found["a.jpg"]["seconds"] > 0
    assert found["a.jpg"]["error"] is None
    assert found["bad.jpg"]["output"] is None
    error = found["bad.jpg"]["error"]
    assert (error["type"], error["step"], error["code"]) == (
        "InvalidPhotoError",
        "decode_photo",
        "bad_photo",
    )
    assert found["gone.jpg"]["error"]["message"] == "No such file or directory"


def test_existing_results(restore, server, picture, tmp_path):
    for number, name in enumerate(["a.jpg", "b.jpg"]):
        picture(tmp_path / "in" / name, seed=number)
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "a.jpg"
    old.write_bytes(b"old")
    words = (tmp_path / "in", "-o", tmp_path / "out")

    done = restore(*words)
    assert done.returncode == 1
    assert f"{old} exists already; nothing was done" in done.stderr
    assert server.requests == []
    assert names(tmp_path / "out") == ["a.jpg"]

    done = restore(*words, "--skip-existing")
    assert done.returncode == 0
    assert "1 restored, 1 skipped" in done.stderr
    assert old.read_bytes() == b"old"

    assert "and 1 other results exist already" in restore(*words).stderr
    done = restore(*words, "--overwrite")
    assert done.returncode == 0
    assert "2 restored" in done.stderr
    assert Image.open(old).size == (48, 32)
    assert restore(*words, "--overwrite", "--skip-existing").returncode == 2
    assert restore(*words, "--overwrite", "--no-color", "--force-color").returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.jpg", "-o", "."], "replace an input"),
        (["a.jpg", "x/a.jpg", "-o", "out"], "would both become out/a.jpg"),
        (["a.jpg", "-o", "b.jpg", "--format", "png"], "contradict"),
        (["a.jpg", "-o", "out", "--url", "http://localhost:8000"], "HOST:PORT"),
    ],
)
def test_wrong_usage(pikfix, picture, tmp_path, words, said):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "x" / "a.jpg", seed=1)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    done = pikfix("restore", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_paths_that_cannot_be_used(restore, picture, tmp_path):
    photo = picture(tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.png").touch()
    out = tmp_path / "out"
    for words, said in [
        ([tmp_path / "gone.jpg", "-o", out], "gone.jpg: No such file"),
        ([photo, "-o", tmp_path / "file" / "out"], "Not a directory"),
        ([photo, "-o", "/proc/nothing/out"], "/proc/nothing"),
        ([tmp_path / "empty", "-o", out], "no pictures in"),
        ([photo, "-o", out, "--reference", tmp_path / "gone.png"], "gone.png: No such file"),
        ([photo, "-o", out, "--reference", tmp_path / "empty.png"], "empty.png is empty"),
    ]:
        done = restore(*words)
        assert done.returncode == 1, words
        assert said in done.stderr
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(restore, picture, tmp_path):
    photo, secret = picture(tmp_path / "a.jpg"), picture(tmp_path / "secret.jpg")
    secret.chmod(0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = restore(photo, secret, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "secret.jpg: Permission denied" in done.stderr
    assert names(tmp_path / "out") == ["a.jpg"]
    done = restore(photo, "-o", closed)
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr


def test_names_that_are_no_text(restore, picture, tmp_path):
    odd = os.fsdecode(b"\xff[red]a.jpg")
    picture(tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / odd)
    done = restore(tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == [odd]
    assert "\\udcff[red]a.jpg" in done.stdout
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--overwrite", "--json")
    assert json.loads(done.stdout)["photo"].endswith("\udcff[red]a.jpg")


def test_nobody_listens(pikfix, free_url, picture, tmp_path):
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.jpg")
    done = pikfix("restore", tmp_path / "in", "-o", tmp_path / "out", "--url", free_url)
    assert done.returncode == 1
    assert done.stderr.count("refused") == 1
    assert "3 unfinished" in done.stderr
    assert "pikfix serve" in done.stderr


def test_a_private_server_that_cannot_start(pikfix, picture, tmp_path):
    photo = picture(tmp_path / "a.jpg")
    done = pikfix(
        *("restore", photo, "-o", tmp_path / "out", "--json"),
        *("--model-repository", tmp_path / "gone"),
    )
    assert done.returncode == 1
    assert "gone does not exist" in done.stderr
    assert json.loads(done.stdout)["status"] == "unfinished"


def test_a_private_server_lives_as_long_as_the_run(picture, tmp_path, monkeypatch, capsys):
    """What the command asks of the server's module, with the tests' server behind it."""
    import contextlib

    from fake_triton import FakeTriton

    from pikfix.cli.main import main
    from pikfix.serving import server as serving

    asked, alive = [], []

    @contextlib.contextmanager
    def start_server(repository, **ports):
        asked.append((repository, ports))
        running = FakeTriton()
        running.grpc_url = running.url
        alive.append(True)
        try:
            yield running
        finally:
            running.close()
            alive.pop()

    monkeypatch.setattr(serving, "start_server", start_server)
    photo = picture(tmp_path / "a.jpg")
    words = ["restore", str(photo), "-o", str(tmp_path / "out"), "--model-repository", "models"]
    assert main(words) == 0
    assert asked == [(Path("models"), {"grpc_port": 0, "http_port": 0, "metrics_port": 0})]
    assert alive == []
    assert "1 restored" in capsys.readouterr().err


def test_a_missing_model(restore, server, picture, tmp_path):
    server.models.clear()
    done = restore(picture(tmp_path / "a.jpg"), "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "pikfix export" in done.stderr


def test_a_model_that_goes_away_stops_the_run(restore, server, fake, picture, tmp_path):
    def vanish(request, context):
        if len(server.requests) > 2:
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' is not found")
        return fake.answer(request, context)

    server.answer = vanish
    for number in range(8):
        picture(tmp_path / "in" / f"{number}.jpg")
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--jobs", "1", "--json")
    assert done.returncode == 1
    statuses = [json.loads(line)["status"] for line in done.stdout.splitlines()]
    assert statuses == ["restored"] * 2 + ["failed"] + ["unfinished"] * 5
    assert "2 restored, 1 failed, 5 unfinished" in done.stderr
    assert len(server.requests) == 3


def test_a_server_that_restarts_loses_no_photo(begin, fake, picture, tmp_path):
    for number in range(4):
        picture(tmp_path / "in" / f"{number}.jpg", seed=number)
    process = subprocess.Popen(
        [sys.executable, fake.__file__, "hang"], stdout=subprocess.PIPE, text=True
    )
    again = None
    try:
        port = int(process.stdout.readline())
        run = begin(
            *("restore", tmp_path / "in", "-o", tmp_path / "out"),
            *("--url", f"127.0.0.1:{port}"),
        )
        for _ in range(2):  # both photos are in flight and hang
            assert process.stdout.readline() == "request\n"
        process.kill()
        process.wait()
        time.sleep(4.0)  # longer than gRPC's own repeats
        again = fake.FakeTriton(port=port)
        out, err = run.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if again is not None:
            again.close()
    assert run.returncode == 0, err
    assert len(out.splitlines()) == 4
    assert names(tmp_path / "out") == [f"{number}.jpg" for number in range(4)]


def test_a_full_disk_stops_the_run(server, picture, tmp_path, monkeypatch, capsys):
    from pikfix.cli.main import main

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for number in range(4):
        picture(tmp_path / "in" / f"{number}.jpg")
    monkeypatch.setattr(os, "fsync", full)
    words = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*words, "--url", server.url, "--jobs", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("No space left") == 1
    assert "1 failed, 3 unfinished" in err
    assert names(tmp_path / "out") == []


def test_a_few_requests_are_in_flight(restore, server, fake, picture, tmp_path):
    barrier = threading.Barrier(3, timeout=20)

    def together(request, context):
        barrier.wait()
        return fake.answer(request, context)

    server.answer = together
    for number in range(6):
        picture(tmp_path / "in" / f"{number}.jpg")
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--jobs", "3")
    assert done.returncode == 0, done.stderr
    assert server.most_at_once == 3


def test_a_photo_that_takes_too_long(restore, server, fake, picture, tmp_path):
    server.answer = fake.hang
    photo = picture(tmp_path / "a.jpg")
    done = restore(photo, "-o", tmp_path / "out", "--timeout", "0.5")
    assert done.returncode == 1
    assert "no answer in the time given" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_a_summary(begin, server, picture, tmp_path, number):
    from fake_triton import answer, hang

    def slow(request, context):
        return (hang if len(server.requests) > 2 else answer)(request, context)

    server.answer = slow
    for one in range(6):
        picture(tmp_path / "in" / f"{one}.jpg", seed=one)
    run = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out"),
        *("--url", server.url, "--jobs", "1", "--json"),
    )
    end = time.monotonic() + 20
    while len(server.requests) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    run.send_signal(number)
    out, err = run.communicate(timeout=10)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert "2 restored, 4 unfinished in" in err
    assert [json.loads(line)["status"] for line in out.splitlines()] == (
        ["restored"] * 2 + ["unfinished"] * 4
    )
    assert names(tmp_path / "out") == ["0.jpg", "1.jpg"]


def test_a_progress_bar_on_a_terminal(server, picture, tmp_path):
    """On a terminal stderr carries a bar that moves; stdout in a pipe stays plain."""
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.jpg")
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [PIKFIX, "restore", tmp_path / "in", "-o", tmp_path / "out", "--url", server.url],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the far end of a terminal closes with an error
            while part := os.read(ours, 4096):
                shown += part
        out = process.communicate(timeout=20)[0]
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert "3/3" in shown.decode()
    assert len(out.splitlines()) == 3
    assert "\x1b" not in out


def test_a_system_and_a_mask_are_passed_on(restore, server, fake, picture, tmp_path):
    server.models["latent_photo"] = "READY"
    server.answer = fake.answer_photo
    photo, mask = picture(tmp_path / "a.png"), picture(tmp_path / "mask.png", seed=3)
    done = restore(photo, "-o", tmp_path / "out", "--system", "latent", "--mask", mask)
    assert done.returncode == 0, done.stderr
    (request,) = server.requests
    assert request.model_name == "latent_photo"
    assert fake.inputs_of(request)["mask"].item() == mask.read_bytes()
    beside = json.loads((tmp_path / "out/a.png.pikfix.json").read_text())
    assert beside["options"]["system"] == "latent"


def test_a_server_without_the_system_is_told_before_any_photo(restore, server, picture, tmp_path):
    photo = picture(tmp_path / "a.png")
    done = restore(photo, "-o", tmp_path / "out", "--system", "latent+pikfix")
    assert done.returncode == 1
    assert "latent_photo at" in done.stderr
    assert "the server has no such model (its systems: pikfix)" in done.stderr
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--system", "latent", "--reference", "a.png"), "--system latent adds no colours"),
        (("--system", "latent", "--force-color"), "--system latent adds no colours"),
        (("--system", "other"), "'other' is not one of"),
    ],
)
def test_what_a_system_cannot_do_is_wrong_usage(
    restore, server, picture, tmp_path, words, complaint
):
    done = restore(picture(tmp_path / "a.png"), "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.split())
    assert server.requests == []


def test_a_mask_is_of_one_photo(restore, server, picture, tmp_path):
    photos = [picture(tmp_path / f"{name}.png") for name in "ab"]
    done = restore(*photos, "-o", tmp_path / "out", "--system", "latent", "--mask", photos[0])
    assert done.returncode == 2
    assert "--mask is of one photo, and 2 are to be restored" in done.stderr
