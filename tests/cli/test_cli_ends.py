"""Output that cannot be written, and signals: every photo counted, nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from results import pictures


def photos(picture, folder, count=4):
    return [picture(folder / f"{number}.jpg") for number in range(count)]


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["lines", "json"])
def test_a_full_disk_under_stdout(restore, picture, tmp_path, words):
    """Unlike a reader who has gone, it is a failure; what was not restored is named."""
    photos(picture, tmp_path / "in")
    with Path("/dev/full").open("w") as full:
        done = restore(tmp_path / "in", "-o", tmp_path / "out", "--jobs", "1", *words, stdout=full)
    assert done.returncode == 1
    assert "1 restored, 3 unfinished in" in done.stderr
    assert done.stderr.count(": not restored") == 3
    assert "pikfix: stopped, as the output cannot be written" in done.stderr
    assert pictures(tmp_path / "out") == ["0.jpg"]


@pytest.mark.parametrize("target", ["full", "closed"])
def test_messages_that_nobody_can_read_cost_no_photo(begin, server, picture, tmp_path, target):
    photos(picture, tmp_path / "in")
    (tmp_path / "in/9.jpg").write_bytes(b"no picture")
    with Path("/dev/full").open("w") as full:
        process = begin(
            *("restore", tmp_path / "in", "-o", tmp_path / "out", "--url", server.url),
            stderr=full if target == "full" else None,
            before="os.close(2)" if target == "closed" else None,
        )
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1  # the one that is no picture
    assert len(out.splitlines()) == 4
    assert pictures(tmp_path / "out") == [*("0.jpg", "1.jpg", "2.jpg", "3.jpg")]


def test_results_larger_than_files_may_be(begin, server, picture, tmp_path):
    """As under `ulimit -f` or a quota: an error for each, and no part of a result."""
    photos(picture, tmp_path / "in", 2)
    process = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--url", server.url),
        before="resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))",
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.count("File too large") == 2
    assert "2 failed in" in err
    assert list((tmp_path / "out").iterdir()) == []


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_a_run_in_order(begin, server, fake, picture, tmp_path, until, number):
    """SIGHUP too, which a terminal sends that is closed."""
    photos(picture, tmp_path / "in")

    def answer(request, context):
        return (fake.answer if len(server.requests) < 3 else fake.hang)(request, context)

    server.answer = answer
    process = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--jobs", "1", "--url", server.url)
    )
    until(lambda: len(server.requests) == 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(out.splitlines()) == 2
    assert "2 restored, 2 unfinished in" in err
    assert pictures(tmp_path / "out") == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_while_waiting_for_room(begin, server, fake, picture, tmp_path, until, number):
    import grpc

    photos(picture, tmp_path / "in")
    fake.fails(server, grpc.StatusCode.UNAVAILABLE, "[decode_photo] busy: no room")
    process = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--jobs", "4", "--url", server.url)
    )
    until(lambda: len(server.requests) >= 4)
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - start < 5
    assert "4 unfinished in" in err


def test_a_run_under_nohup_outlives_its_terminal(begin, server, fake, picture, tmp_path, until):
    photos(picture, tmp_path / "in", 2)
    server.answer = lambda request, context: (time.sleep(1), fake.answer(request, context))[1]
    process = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out", "--url", server.url),
        before="signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )
    until(lambda: server.requests)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "2 restored in" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_while_the_private_server_starts(begin, picture, tmp_path, until, number):
    """Its step never comes up; the server ends with the command."""
    photos(picture, tmp_path / "in", 1)
    step = tmp_path / "models/slow/1/model.py"
    step.parent.mkdir(parents=True)
    began = tmp_path / "began"
    step.write_text(f"import pathlib, time\npathlib.Path({str(began)!r}).touch()\ntime.sleep(99)\n")
    (tmp_path / "models/slow/config.pbtxt").write_text(
        'name: "slow"\nbackend: "python"\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }\n'
        "instance_group { kind: KIND_CPU }\n"
    )
    process = begin(
        *("restore", tmp_path / "in", "-o", tmp_path / "out"),
        *("--model-repository", tmp_path / "models"),
    )
    until(began.exists, 40)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "1 unfinished in" in err
    left = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path / "models") not in left.stdout
