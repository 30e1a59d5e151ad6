"""A batch of photos through a real server whose processes are killed under it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from pikfix.cli.main import main
from pikfix.client import PikFixClient, StepCrashedError
from pikfix.serving.server import start_server


@pytest.fixture
def photos(tmp_path):
    """Sixty small photos in a folder."""
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(data.camera())
    for number in range(60):
        box = (4 * number, number, 4 * number + 40, number + 32)
        picture.crop(box).save(tmp_path / "in" / f"{number:02}.png")
    return tmp_path / "in"


@pytest.mark.parametrize("victim", ["step", "server"])
def test_sixty_photos_sixteen_at_a_time(exported, photos, tmp_path, capsys, victim):
    """More in flight than the queues hold, and a kill in the middle: sixty results."""
    with start_server(exported[0]) as server:

        def kill():
            end = time.monotonic() + 60
            while len(list(tmp_path.glob("out/*"))) < 10 and time.monotonic() < end:
                time.sleep(0.02)
            numbers = [n for n, name in server.stubs().items() if name.startswith("restore")]
            os.kill(numbers[0] if victim == "step" else server.server_pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        words = ["restore", str(photos), "-o", str(tmp_path / "out"), "--url", server.grpc_url]
        code = main([*words, "--jobs", "16", "--json", "--no-color"])
        killer.join()
        out, err = capsys.readouterr()
        restarts = server.restarts
    assert code == 0, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["restored"] * 60
    assert restarts == 1
    for path in photos.iterdir():
        with Image.open(tmp_path / "out" / path.name) as result:
            assert result.size == (40, 32)


def test_a_dead_step_is_told_from_a_failed_one(exported, photos):
    """Without a supervisor it stays dead, and the error says what happened."""
    with start_server(exported[0], supervise=False) as server:
        numbers = [n for n, name in server.stubs().items() if name.startswith("restore")]
        os.kill(numbers[0], signal.SIGKILL)
        with PikFixClient(server.grpc_url) as client, pytest.raises(StepCrashedError) as caught:
            client.restore(photos / "00.png", timeout=30)
    assert caught.value.passing
    assert caught.value.step == "restore"


def test_ipv6_loopback(identity_repository):
    """All three endpoints listen where they were told to."""
    with start_server(identity_repository, address="[::1]", supervise=False) as server:
        assert server.grpc_url == f"[::1]:{server.grpc_port}"
        with PikFixClient(server.grpc_url) as client:
            assert client.server_info().models[0].name == "identity"
        listening = set()
        for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and address == "0" * 24 + "01000000":
                listening.add(int(port, 16))
        assert {server.grpc_port, server.http_port, server.metrics_port} <= listening
