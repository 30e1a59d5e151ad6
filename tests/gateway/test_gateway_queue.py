"""Many at once, and a gateway that is killed."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_triton
import httpx
import numpy as np
import pytest
from PIL import Image

PIKFIX = Path(sys.executable).with_name("pikfix")


def level(data):
    return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0])


def test_fifty_at_once_wait_are_turned_away_and_come_again_and_none_is_lost(start, fake, make_png):
    gateway = start(queue=8, in_flight=2)
    fake.delay = 0.01
    turned_away = []

    async def one(http, value):
        while True:
            files = {"photo": ("a.png", make_png(value))}
            answer = await http.post("/v1/restorations", files=files)
            if answer.status_code == 200:
                return level(answer.content)
            assert answer.status_code == 429, answer.text
            assert answer.json()["code"] == "queue_full"
            turned_away.append(int(answer.headers["retry-after"]))
            await asyncio.sleep(0.05)

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=gateway.url, timeout=60, limits=limits, trust_env=False
        ) as http:
            return await asyncio.gather(*[one(http, value) for value in range(50)])

    assert asyncio.run(all_of_them()) == [255 - value for value in range(50)]
    assert len(fake.calls) == 50, "each was done once"
    assert fake.most == 2
    assert turned_away
    assert min(turned_away) >= 1


def test_the_place_in_the_queue_is_told(start, fake, until):
    gateway = start(in_flight=1)
    fake.gate.clear()
    jobs = [gateway.send(later=True).json()["id"] for _ in range(3)]
    until(lambda: gateway.state(jobs[0])["state"] == "running")
    assert [gateway.state(job)["ahead"] for job in jobs] == [0, 0, 1]
    gateway.http.delete(f"/v1/restorations/{jobs[1]}")
    assert gateway.state(jobs[2])["ahead"] == 0
    fake.gate.set()
    assert gateway.finish(jobs[2])["state"] == "done"
    assert len(fake.calls) == 2


def test_a_full_disk_is_told_and_the_queue_goes_on(gateway, fake, monkeypatch, until):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pikfix.gateway.uploads._copy", full)
        answer = gateway.send()
        assert (answer.status_code, answer.json()["code"]) == (507, "not_writable")
        assert "No space left" in answer.json()["detail"]
    with monkeypatch.context() as patch:
        patch.setattr("pikfix.gateway.store.Store.finish", full)
        answer = gateway.send()
        assert (answer.status_code, answer.json()["code"]) == (507, "not_writable")
    assert gateway.send().status_code == 200


@pytest.fixture
def server():
    running = fake_triton.FakeTriton()
    yield running
    running.close()


@pytest.fixture
def web(server, tmp_path):
    """Run ``pikfix web`` on one folder; give the process and its address."""
    running = []
    place = ["--port", "0", "--store", tmp_path / "jobs"]

    def begin(*words, ready=True):
        process = subprocess.Popen(
            [PIKFIX, "web", "--url", server.url, *place, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        if not ready:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err
        line = process.stdout.readline()
        assert line.startswith("ready: open http://"), process.communicate()
        http = httpx.Client(base_url=line.split()[2], timeout=30, trust_env=False)
        return process, http

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_after_a_kill_finished_jobs_are_there_and_the_others_are_done_once(
    web, server, make_png, until
):
    process, http = web("--jobs", "1")
    later = {"Prefer": "respond-async"}

    def send(value):
        files = {"photo": ("a.png", make_png(value))}
        return http.post("/v1/restorations", files=files, headers=later).json()["links"]["self"]

    done = send(10)
    until(lambda: http.get(done).json()["state"] == "done")
    picture = http.get(f"{done}/picture").content
    server.answer = fake_triton.hang
    left = [send(20), send(30), send(40)]
    until(lambda: len(server.requests) == 2)
    http.delete(left.pop())
    process.send_signal(signal.SIGKILL)
    process.wait()

    server.answer = fake_triton.answer
    before = len(server.requests)
    process, http = web("--jobs", "1")
    for place, value in zip(left, (20, 30), strict=True):
        until(lambda place=place: http.get(place).json()["state"] == "done")
        assert level(http.get(f"{place}/picture").content) == value
    assert http.get(f"{done}/picture").content == picture
    assert len(server.requests) - before == 2, "only what was unfinished runs, and once"
    process.terminate()
    assert process.wait(timeout=20) == 0


def test_an_interrupted_upload_and_a_strange_folder_are_no_restorations(web, tmp_path, until):
    jobs = tmp_path / "jobs"
    (jobs / "incoming-1").mkdir(parents=True)
    (jobs / "incoming-1" / "photo").write_bytes(b"half")
    (jobs / ("0" * 32)).mkdir()
    (jobs / "notes").mkdir()
    _, http = web()
    assert http.get("/metrics").status_code == 200
    assert sorted(one.name for one in jobs.iterdir()) == ["0" * 32, "lock", "notes"]


def test_one_folder_is_for_one_gateway(web):
    web()
    code, _, err = web(ready=False)
    assert code == 1
    assert "in use by another `pikfix web`" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "--tokens FILE, or --open"),
        (["--url", "http://x"], 2, "--url"),
        (["--tokens", "/nowhere/tokens"], 1, "/nowhere/tokens"),
        (["--host", "192.0.2.1", "--open"], 1, "192.0.2.1:0: Cannot assign"),
        (["--host", "no-such-host.invalid", "--open"], 1, "no-such-host.invalid:0"),
        (["--library", "x"], 2, "leave --url out"),
        (["--keep", "0"], 2, "--keep"),
    ],
)
def test_a_wrong_start_is_one_line(web, words, code, said):
    returned, _, err = web(*words, ready=False)
    assert (returned, len(err.splitlines())) == (code, 1), err
    assert said in err


def test_off_loopback_the_names_that_are_answered_are_given(web):
    _, http = web("--host", "0.0.0.0", "--open", "--host-name", "album.example")
    assert http.get("/service").status_code == 421
    assert http.get("/service", headers={"Host": "album.example"}).status_code == 200


def test_without_the_extra_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from pikfix.cli.main import main; sys.exit(main(['web']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 1
    assert run.stderr == (
        "pikfix: this needs fastapi, which is not installed; run: pip install 'pikfix[web]'\n"
    )


def test_the_folder_is_for_its_owner_alone(web, tmp_path):
    web()
    assert (tmp_path / "jobs").stat().st_mode & 0o077 == 0


def test_a_gateway_with_watchers_ends_in_order(web, server, make_png, until):
    process, http = web()
    server.answer = fake_triton.hang
    files = {"photo": ("a.png", make_png())}
    job = http.post("/v1/restorations", files=files, headers={"Prefer": "respond-async"}).json()
    until(lambda: server.requests)
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(http.post("/v1/restorations", files=files))
    )
    waiting.start()
    until(lambda: len(server.requests) == 2)
    with http.stream("GET", job["links"]["events"]) as events:
        process.terminate()
        assert "event: restoration" in list(events.iter_lines())
    assert process.wait(timeout=20) == 0
    waiting.join()
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "shutting_down")
    assert "Traceback" not in process.stderr.read()
    server.answer = fake_triton.answer
    _, http = web()
    place = f"{answers[0].headers['location']}/picture"
    until(lambda: http.get(place).status_code == 200)
