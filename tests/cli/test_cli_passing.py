"""Passing troubles: a batch waits for them, and loses no photo to them."""

from __future__ import annotations

import json
import threading
import time

import grpc
import pytest

from pikfix.cli import flow

QUEUE = "in ensemble 'pikfix_photo', Exceeds maximum queue size"
STUB = "in ensemble 'pikfix_photo', Stub process 'restore_0_0' is not healthy."


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """What takes a supervisor seconds, is quick here."""
    from pikfix.client import ServerBusyError

    monkeypatch.setattr(flow, "_NOTICED_AFTER_S", 0.1)
    monkeypatch.setattr(ServerBusyError, "retry_after", 0.05)


@pytest.fixture
def batch(server, picture, tmp_path, capsys):
    """Restore a folder of photos in this process; (exit code, outcomes by name, stderr)."""
    from pikfix.cli.main import main

    def run(count, *words):
        for number in range(count):
            picture(tmp_path / "in" / f"{number:02}.jpg", size=(24 + number, 16))
        capsys.readouterr()
        code = main(
            [
                *("restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")),
                *("--url", server.url, "--json", *words),
            ]
        )
        out, err = capsys.readouterr()
        found = {one["photo"].rpartition("/")[2]: one for one in map(json.loads, out.splitlines())}
        assert len(found) == count
        return code, found, err

    return run


def width_of(fake, request):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(fake.inputs_of(request)["photo"].flat[0])).width


def statuses(found):
    return sorted({one["status"] for one in found.values()})


def test_a_queue_smaller_than_the_batch(batch, server, fake):
    """The number in flight falls to what the server takes, instead of hammering it."""
    room, refused = threading.Semaphore(4), []

    def answer(request, context):
        if not room.acquire(blocking=False):
            refused.append(request)
            context.abort(grpc.StatusCode.UNAVAILABLE, QUEUE)
        try:
            time.sleep(0.03)
            return fake.answer(request, context)
        finally:
            room.release()

    server.answer = answer
    code, found, err = batch(60, "--jobs", "16")
    assert (code, statuses(found)) == (0, ["restored"])
    assert "60 restored in" in err
    assert 0 < len(refused) < 60


TROUBLES = [
    (grpc.StatusCode.UNAVAILABLE, QUEUE),
    (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11"),
    (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    (grpc.StatusCode.CANCELLED, "Received RST_STREAM with error code 8"),
    (grpc.StatusCode.INTERNAL, STUB),
    (grpc.StatusCode.UNAVAILABLE, "Server is stopping, scheduler for model has stopped"),
    (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'x' has no available versions"),
    (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 503"),
    (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    (grpc.StatusCode.UNAVAILABLE, ""),
    (grpc.StatusCode.UNAVAILABLE, "[decode_photo] busy: 16 photos are being worked on"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate limit exceeded"),
    (grpc.StatusCode.CANCELLED, ""),
    (grpc.StatusCode.ABORTED, "overloaded"),
    (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 500"),
    (grpc.StatusCode.UNAVAILABLE, "upstream connect error. reset reason: TLS error: reset"),
    (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
]


@pytest.mark.parametrize(("status", "text"), TROUBLES, ids=lambda one: str(one)[:30])
@pytest.mark.parametrize("jobs", ["1", "4"])
def test_what_passes_costs_no_photo(batch, server, fake, status, text, jobs):
    fake.fails(server, status, text, times=2)
    code, found, err = batch(5, "--jobs", jobs)
    assert (code, statuses(found)) == (0, ["restored"]), err
    assert len(server.requests) == 7


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE])
def test_a_photo_that_kills_its_step_each_time_is_named(batch, server, fake, status):
    """It takes others along at first; alone it is found out, and the others are restored."""
    text = STUB if status is grpc.StatusCode.INTERNAL else "Socket closed"
    dead = []

    def comes_back():
        server.ready = True

    def answer(request, context):
        if width_of(fake, request) == 24 + 3:
            dead.append(request)
            server.ready = False
            threading.Timer(0.1, comes_back).start()
            context.abort(status, text)
        time.sleep(0.02)
        if not server.ready:
            context.abort(status, text)
        return fake.answer(request, context)

    server.answer = answer
    code, found, err = batch(12, "--jobs", "4")
    assert code == 1
    assert [name for name, one in found.items() if one["status"] == "failed"] == ["03.jpg"]
    assert "11 restored, 1 failed" in err
    assert "03.jpg: pikfix_photo" in err
    assert len(dead) == 3


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (grpc.StatusCode.INTERNAL, "[restore] deadline_exceeded: 1.2 s late"),
        (grpc.StatusCode.INTERNAL, "[restore] internal: bad allocation"),
    ],
)
def test_what_company_may_have_caused_is_tried_alone(batch, server, fake, status, text):
    """A photo that had too little time or memory beside others has enough alone."""
    busy = threading.Semaphore(1)

    def answer(request, context):
        alone = busy.acquire(blocking=False)
        try:
            time.sleep(0.05)
            if not alone:
                context.abort(status, text)
            return fake.answer(request, context)
        finally:
            if alone:
                busy.release()

    server.answer = answer
    code, found, err = batch(8, "--jobs", "4")
    assert (code, statuses(found)) == (0, ["restored"]), err


def test_what_fails_alone_too_fails_once(batch, server, fake):
    fake.fails(server, grpc.StatusCode.INTERNAL, "[restore] internal: 0/0")
    code, found, _ = batch(1)
    assert (code, statuses(found)) == (1, ["failed"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["bad_photo: damaged", "photo_too_large: 200 megapixels"])
def test_what_does_not_pass_is_sent_once(batch, server, fake, text):
    fake.fails(server, grpc.StatusCode.INTERNAL, f"[decode_photo] {text}")
    code, found, _ = batch(4, "--jobs", "4")
    assert (code, statuses(found)) == (1, ["failed"])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 503"),
        (grpc.StatusCode.UNAVAILABLE, "model 'restore' is not at ready state"),
        (grpc.StatusCode.CANCELLED, ""),
    ],
)
def test_a_ready_server_that_turns_all_away_is_not_asked_for_ever(
    batch, server, fake, monkeypatch, status, text
):
    """Nor as fast as it can answer: a proxy may refuse the photos and let the question pass."""
    from pikfix.cli import restore

    monkeypatch.setattr(restore, "_RECONNECT_TIMEOUT", 0.5)
    fake.fails(server, status, text)
    start = time.monotonic()
    code, found, err = batch(3, "--jobs", "1")
    assert code == 1
    assert statuses(found) == ["failed", "unfinished"]
    assert "Traceback" not in err
    assert time.monotonic() - start < 10
    # 0.1 s, 0.1, 0.2, 0.4: the pauses double.
    assert 4 <= len(server.requests) <= 6


def test_one_photo_that_is_turned_away_does_not_end_the_run(batch, server, fake, monkeypatch):
    from pikfix.cli import restore

    monkeypatch.setattr(restore, "_RECONNECT_TIMEOUT", 0.3)

    def answer(request, context):
        if width_of(fake, request) == 24:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 503")
        time.sleep(0.1)
        return fake.answer(request, context)

    server.answer = answer
    code, found, err = batch(12, "--jobs", "2")
    assert code == 1
    assert [name for name, one in found.items() if one["status"] == "failed"] == ["00.jpg"]
    assert "11 restored, 1 failed" in err
    assert "00.jpg: turned away while other photos were answered: pikfix_photo" in err


def test_patience_ends(batch, server, fake, monkeypatch):
    from pikfix.cli import restore

    monkeypatch.setattr(restore, "_RECONNECT_TIMEOUT", 0.3)
    fake.fails(server, grpc.StatusCode.UNAVAILABLE, QUEUE)
    start = time.monotonic()
    code, found, err = batch(3, "--timeout", "0.5")
    assert (code, statuses(found)) == (1, ["failed"])
    assert "maximum queue size (waited 0." in err
    assert "s for room in the server)" in err
    assert time.monotonic() - start < 10


def test_a_server_that_stays_away_ends_the_run(batch, server, fake, monkeypatch):
    from pikfix.cli import restore

    monkeypatch.setattr(restore, "_RECONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(flow, "_MENTIONED_AFTER_S", 0.1)

    def vanish(request, context):
        server.ready = False
        context.abort(grpc.StatusCode.UNAVAILABLE, "Server is stopping")

    server.answer = vanish
    code, found, err = batch(6, "--jobs", "2")
    assert code == 1
    assert statuses(found) == ["failed", "unfinished"]
    assert err.count("the server does not answer; waiting up to 0.5 s") == 1
    assert "stopped, as the remaining photos would have failed alike" in err
