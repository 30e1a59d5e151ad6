"""``pikfix batch`` as a process: parts, receipts, and going on where a run ended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time

import grpc
import pytest

from pikfix.cli.main import main


@pytest.fixture
def scans(picture, tmp_path):
    """Twelve photos in two folders, two of them damaged."""
    for number in range(10):
        picture(tmp_path / f"in/box{number % 2}/{number}.png", seed=number)
    for number in (10, 11):
        (tmp_path / f"in/box0/{number}.jpg").write_bytes(b"no picture at all")
    return tmp_path / "in"


@pytest.fixture
def command(capsys):
    """Run the command in this process: starting one for each of many runs takes seconds."""

    def run(*words):
        code = main(list(map(str, words)))
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run


@pytest.fixture
def batch(command, server, scans, tmp_path):
    """Run the command on the photos, against the server."""

    def run(*words, out="out"):
        return command("batch", scans, "-o", tmp_path / out, *words, "--url", server.url)

    return run


@pytest.fixture
def verify(command, scans, tmp_path):
    return lambda *words: command("batch", "verify", scans, "-o", tmp_path / "out", *words)


def receipts(folder):
    """The ends of photos by name, from all files."""
    # Whole lines alone: a process that was killed may leave a part of one.
    texts = [one for file in folder.glob("*.jsonl") for one in file.read_bytes().split(b"\n")[:-1]]
    lines = [json.loads(text) for text in texts]
    found = [line for line in lines if line.get("status") not in (None, "begun")]
    assert len({one["photo"] for one in found}) == len(found)
    return {one["photo"]: one for one in found}


def results(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if ".receipts" not in path.parts and not path.name.endswith(".pikfix.json")
    }


def test_every_photo_has_one_receipt(batch, verify, server, scans, tmp_path):
    done = batch()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "10 restored, 2 failed" in done.stderr
    found = receipts(tmp_path / "out/.receipts")
    assert len(found) == 12
    one = found["box1/3.png"]
    photo = (scans / "box1/3.png").read_bytes()
    result = (tmp_path / "out/box1/3.png").read_bytes()
    assert one["status"] == "restored"
    assert one["output"] == "box1/3.png"
    assert one["input"]["sha256"] == hashlib.sha256(photo).hexdigest()
    assert one["result"]["sha256"] == hashlib.sha256(result).hexdigest()
    assert one["report"]["result"]["format"] == "png"
    assert one["seconds"] > 0
    assert found["box0/10.jpg"]["error"]["code"] == "bad_photo"
    assert found["box0/10.jpg"]["final"]

    said = verify("--price", "3.6")
    assert said.returncode == 1
    assert "complete: 2 failed, 10 restored of 12 photos" in said.stdout
    assert "failed      box0/10.jpg: " in said.stdout
    assert " per 1,000 photos at 3.6 an hour" in said.stdout
    assert verify("--allow-failed", "--quick").returncode == 0


def test_results_are_those_of_restore(batch, command, server, scans, tmp_path):
    batch()
    command("restore", scans, "-o", tmp_path / "plain", "--url", server.url)
    assert results(tmp_path / "out") == results(tmp_path / "plain")


def test_the_same_command_goes_on_and_does_nothing_twice(batch, server, scans, tmp_path):
    batch()
    before = len(server.requests)
    again = batch()
    assert again.returncode == 1  # two still failed
    assert "done before: 2 failed, 10 restored" in again.stderr
    assert len(server.requests) == before
    os.utime(scans / "box1/3.png")  # changed, for all that is known
    (tmp_path / "out/box1/5.png").unlink()
    assert "2 restored" in batch().stderr
    assert len(server.requests) == before + 2
    assert "2 failed in" in batch("--retry-failed").stderr
    assert len(server.requests) == before + 4


def test_a_killed_run_is_taken_up(begin, batch, verify, fake, server, scans, tmp_path, until):
    def slow(request, context):
        if len(server.requests) > 5:
            return fake.hang(request, context)
        return fake.answer(request, context)

    server.answer = slow
    run = begin("batch", scans, "-o", tmp_path / "out", "--url", server.url)
    until(lambda: len(server.requests) >= 7)
    run.kill()
    run.wait()
    said = verify()
    assert said.returncode == 1
    assert said.stdout.splitlines()[-1].startswith("incomplete (7 missing)")
    # A result whose receipt is lost is the batch's own all the same: its beginning is known.
    lines = next((tmp_path / "out/.receipts").glob("*.jsonl"))
    kept = lines.read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(kept) if b'"restored"' in line)
    lines.write_bytes(b"".join(kept[:last] + kept[last + 1 :]) + kept[last][:30])
    server.answer = fake.answer
    done = batch()
    assert "of this batch" not in done.stderr
    assert verify("--allow-failed").returncode == 0
    assert len(receipts(tmp_path / "out/.receipts")) == 12


def test_parts_together_are_the_whole(batch, verify, tmp_path):
    for part in range(3):
        batch("--shard", f"{part}/3")
        if part < 2:
            assert "incomplete" in verify().stdout
    assert verify("--allow-failed").returncode == 0
    assert len(receipts(tmp_path / "out/.receipts")) == 12
    batch(out="whole")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_parts_at_the_same_time(begin, verify, server, scans, tmp_path):
    words = ("batch", scans, "-o", tmp_path / "out", "--url", server.url, "--receipts")
    runs = [begin(*words, tmp_path / "slips", "--shard", f"{part}/3") for part in range(3)]
    for run in runs:
        err = run.communicate(timeout=60)[1]
        assert "Traceback" not in err
    assert verify("--receipts", tmp_path / "slips", "--allow-failed").returncode == 0
    assert len(receipts(tmp_path / "slips")) == 12


def test_a_listing(command, server, scans, tmp_path):
    listing = scans / "some.txt"
    listing.write_text("box1/1.png\nbox0/gone.png\nbox1/3.png\n")
    words = ("-o", tmp_path / "out")
    done = command("batch", listing, *words, "--url", server.url)
    assert done.returncode == 1
    assert f"{scans}/box0/gone.png: No such file" in done.stderr
    assert set(results(tmp_path / "out")) == {"box1/1.png", "box1/3.png"}
    said = command("batch", "verify", listing, *words, "--json")
    found = json.loads(said.stdout)
    assert found["complete"]
    assert found["failed"] == [["box0/gone.png", "No such file or directory"]]
    assert said.returncode == 1


def test_what_failed_in_passing_is_tried_again(batch, verify, server, fake, tmp_path):
    fake.fails(server, grpc.StatusCode.INTERNAL, "in ensemble 'pikfix_photo', out of luck")
    assert "12 failed" in batch().stderr
    assert not any(one["final"] for one in receipts(tmp_path / "out/.receipts").values())
    server.answer = fake.answer
    assert "10 restored, 2 failed" in batch().stderr
    said = verify("--allow-failed")
    assert said.returncode == 0
    assert "12 photos have several; the last counts" in said.stdout


def test_results_that_others_made_are_left_alone(batch, verify, scans, tmp_path):
    own = tmp_path / "out/box1/3.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    done = batch()
    assert done.returncode == 1
    assert "box1/3.png exists already, and no receipt says" in done.stderr
    assert own.read_bytes() == b"mine"
    (tmp_path / "out/notes.txt").write_text("mine, too")
    assert "10 restored" in batch("--overwrite").stderr
    said = verify()
    assert "foreign     notes.txt" in said.stdout
    assert "incomplete (1 foreign)" in said.stdout
    shutil.rmtree(scans / "box0")
    assert "stale       box0/2.png: its photo is not there any more" in verify().stdout


def test_an_interrupt_ends_in_order(begin, batch, verify, server, fake, scans, tmp_path, until):
    def slow(request, context):
        return (fake.hang if len(server.requests) > 3 else fake.answer)(request, context)

    server.answer = slow
    run = begin("batch", scans, "-o", tmp_path / "out", "--url", server.url)
    until(lambda: len(server.requests) >= 5)
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    err = run.communicate(timeout=20)[1]
    assert run.returncode == 130
    assert "9 unfinished" in err
    server.answer = fake.answer
    batch()
    assert verify("--allow-failed").returncode == 0


def test_a_system_is_passed_on_and_stays(batch, server, fake):
    server.models["latent_photo"] = "READY"
    server.answer = fake.answer_photo
    done = batch("--system", "latent")
    assert done.returncode == 1, done.stderr  # for the damaged ones
    assert {request.model_name for request in server.requests} == {"latent_photo"}
    other = batch()
    assert other.returncode == 1
    assert "system" in other.stderr
    wrong = batch("--system", "latent", "--force-color")
    assert wrong.returncode == 2
    assert "--system latent adds no colours" in wrong.stderr


def test_the_choice_of_options_stays(batch):
    batch("--no-color")
    done = batch("--jobs", "5")
    assert done.returncode == 1
    assert "begun with another choice of color; give the same" in done.stderr
    assert "done before" in batch("--no-color", "--jobs", "5").stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--shard", "3/3"], 2, "I from 0 to N-1"),
        (["--no-color", "--force-color"], 2, "exclude each other"),
        (["--receipts", "/proc/nothing"], 1, "/proc/nothing"),
        (["--token", "a b"], 2, "token"),
        (["--reference", "gone.png"], 1, "gone.png"),
    ],
)
def test_wrong_usage(batch, server, words, code, said):
    done = batch(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.requests == []


def test_nothing_to_do(command, server, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, said in [
        ((tmp_path / "empty", "-o", tmp_path / "out"), "no pictures in"),
        ((tmp_path / "gone", "-o", tmp_path / "out"), "gone: No such file"),
        ((tmp_path / "empty",), "Missing option"),
    ]:
        done = command("batch", *words, "--url", server.url)
        assert done.returncode != 0
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    said = command("batch", "verify", tmp_path / "empty", "-o", tmp_path / "out")
    assert said.returncode == 1
    assert "there are no receipts in" in said.stderr


def test_nobody_listens(command, free_url, scans, tmp_path):
    done = command("batch", scans, "-o", tmp_path / "out", "--url", free_url)
    assert done.returncode == 1
    assert done.stderr.count("refused") == 1
    assert not receipts(tmp_path / "out/.receipts")
