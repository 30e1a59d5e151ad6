"""``pikfix batch --ray`` on a cluster of two nodes on this machine, one of which dies."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytest.importorskip("ray", reason="ray is not installed")
from ray.cluster_utils import Cluster

from pikfix.cli.main import main

PHOTOS = 24


@pytest.fixture
def cluster(monkeypatch):
    # Workers start in the test's folder and import what it imports.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    yield running
    running.shutdown()


def test_a_node_that_dies_costs_its_unfinished_photos_alone(
    cluster, server, fake, picture, tmp_path, capsys, until
):
    second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    scans, out = tmp_path / "in", tmp_path / "out"
    for number in range(PHOTOS):
        picture(scans / f"{number}.png", seed=number)
    (scans / "bad.jpg").write_bytes(b"no picture")

    def slow(request, context):
        time.sleep(0.3)
        return fake.answer(request, context)

    server.answer = slow

    def kill():
        until(lambda: len(server.requests) >= 6, 120)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    words = ["batch", str(scans), "-o", str(out), "--url", server.url]
    code = main([*words, "--ray", cluster.address, "--parts", "4"])
    killer.join()
    out_text, said = capsys.readouterr()
    assert out_text == ""
    assert code == 1  # one photo is damaged
    assert "part 3/4 has ended" in said
    assert f"1 failed, {PHOTOS} restored" in said
    assert main(["batch", "verify", str(scans), "-o", str(out), "--allow-failed"]) == 0
    lines = [
        json.loads(line)
        for file in (out / ".receipts").glob("*.jsonl")
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    ends = [line["photo"] for line in lines if line.get("status") not in (None, "begun")]
    assert sorted(ends) == sorted([*(f"{number}.png" for number in range(PHOTOS)), "bad.jpg"])
    # Both nodes worked, and what was in the dead one's hands was sent once more.
    assert len(server.requests) <= PHOTOS + 1 + 2
    assert len({line["run"]["part"] for line in lines if "run" in line}) == 4
    alone = tmp_path / "alone"
    server.answer = fake.answer
    assert main(["batch", str(scans), "-o", str(alone), "--url", server.url]) == 1
    for number in range(PHOTOS):
        name = f"{number}.png"
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def test_there_is_no_cluster(server, picture, tmp_path, capsys):
    picture(tmp_path / "in/a.png")
    words = ["batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--url", server.url]
    assert main([*words, "--ray", "auto"]) == 1
    error = capsys.readouterr().err
    assert "pikfix: --ray auto: " in error
    assert server.requests == []
    assert main([*words, "--parts", "3"]) == 2
    assert main([*words, "--ray", "auto", "--shard", "0/2"]) == 2
