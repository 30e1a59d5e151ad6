"""Several servers behind one address: they share the calls, go and come back."""

from __future__ import annotations

import contextlib
import socket
import threading

import grpc
import pytest
from fake_triton import QUICK, FakeTriton
from small_dns import SmallDns

from pikfix.client import PikFixClient, ProxyError, Retry, ServerUnreachableError, Tls
from pikfix.client._address import parse_address

# gRPC makes its pauses between attempts to connect from these; see client/_transport.py.
SOON = 15.0


@pytest.fixture
def pair():
    """Two servers on one port of two addresses of this machine."""
    first = FakeTriton()
    second = FakeTriton(host="127.0.0.2", port=first.port)
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def names():
    running = SmallDns("127.0.0.1", "127.0.0.2")
    yield running
    running.close()


def shares(servers):
    return [len(one.requests) for one in servers]


def spread(client, servers, jpeg, until):
    """Call until each server has answered; then the connections are there."""

    def both():
        client.restore(jpeg)
        return all(shares(servers))

    until(both, SOON)
    for one in servers:
        one.requests.clear()


def test_a_list_shares_the_calls_evenly(kind, pair, jpeg, until):
    first, second = pair
    with kind(f"ipv4:{first.url},{second.url}") as client:
        spread(client, pair, jpeg, until)
        for _ in range(20):
            client.restore(jpeg)
    assert shares(pair) == [10, 10]


def test_a_name_stands_for_all_its_addresses(kind, pair, names, jpeg, until):
    url = f"dns://127.0.0.1:{names.port}/replicas.test:{pair[0].port}"
    with kind(url) as client:
        spread(client, pair, jpeg, until)
        for _ in range(10):
            client.restore(jpeg)
    assert shares(pair) == [5, 5]


def test_a_list_of_ipv6(kind, jpeg, until):
    servers = []
    try:
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                servers.append(FakeTriton(host="[::1]"))
        if len(servers) < 2:
            pytest.skip("there is no IPv6 here")
        with kind(f"ipv6:{servers[0].url},{servers[1].url}") as client:
            spread(client, servers, jpeg, until)
            for _ in range(10):
                client.restore(jpeg)
        assert shares(servers) == [5, 5]
    finally:
        for one in servers:
            one.close()


def test_a_replica_that_goes_costs_no_call_and_one_that_comes_back_gets_its_share(
    kind, pair, jpeg, until
):
    first, second = pair
    with kind(f"ipv4:{first.url},{second.url}", retry=QUICK) as client:
        spread(client, pair, jpeg, until)
        second.close()
        for _ in range(10):
            client.restore(jpeg)
        assert len(first.requests) == 10
        again = FakeTriton(host="127.0.0.2", port=second.port)
        try:
            spread(client, (first, again), jpeg, until)
        finally:
            again.close()


def test_another_replica_takes_the_request_of_one_that_dies(pair, doomed, jpeg):
    """In mid-request: the answer comes all the same, since a request changes nothing."""
    first, (url, process) = pair[0], doomed
    with PikFixClient(f"ipv4:{first.url},{url}", retry=QUICK) as client:
        said: list[str] = []
        listening = threading.Thread(target=lambda: said.append(process.stdout.readline()))
        listening.start()
        threads = []
        # Until the doomed one is connected, the other gets them all.
        while not said and len(threads) < 200:
            threads.append(threading.Thread(target=client.restore, args=(jpeg,)))
            threads[-1].start()
            listening.join(0.05)
        process.kill()
        assert said == ["request\n"]
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert len(first.requests) == len(threads)


def test_a_name_is_asked_again_when_a_replica_has_gone(pair, names, jpeg, until):
    first, second = pair
    names.addresses = ["127.0.0.1"]
    with PikFixClient(f"dns://127.0.0.1:{names.port}/r.test:{first.port}", retry=QUICK) as client:
        client.restore(jpeg)
        names.addresses = ["127.0.0.2"]
        first.close()

        def moved():
            with contextlib.suppress(ServerUnreachableError):
                client.restore(jpeg)
            return bool(second.requests)

        until(moved, SOON)


def test_a_new_replica_is_found_when_a_connection_has_come_of_age(names, jpeg, until):
    """As the images' server ends them from time to time; no call is lost by it."""
    old = FakeTriton(options=[("grpc.max_connection_age_ms", 500)])
    new = FakeTriton(host="127.0.0.2", port=old.port)
    names.addresses = ["127.0.0.1"]
    try:
        url = f"dns://127.0.0.1:{names.port}/r.test:{old.port}"
        with PikFixClient(url, retry=Retry.never()) as client:
            client.restore(jpeg)
            names.addresses = ["127.0.0.1", "127.0.0.2"]

            def shared():
                client.restore(jpeg)
                return bool(new.requests)

            until(shared, SOON)
    finally:
        old.close()
        new.close()


@pytest.mark.parametrize("state", ["exiting", "loading", "without the model"])
def test_one_replica_that_is_ready_is_enough(kind, pair, jpeg, until, state):
    first, second = pair

    def leave(request, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "Server exiting")

    with kind(f"ipv4:{first.url},{second.url}") as client:
        spread(client, pair, jpeg, until)
        if state == "exiting":
            first.ask = leave
        elif state == "loading":
            first.ready = False
        else:
            first.models.clear()
        for _ in range(3):
            client.ensure_ready()
        second.ready = False
        second.models.clear()
        assert not client.is_ready()


def test_all_replicas_gone(kind, pair, jpeg):
    first, second = pair
    with kind(f"ipv4:{first.url},{second.url}", retry=Retry.never()) as client:
        client.restore(jpeg)
        first.close()
        second.close()
        with pytest.raises(ServerUnreachableError, match="pikfix serve"):
            client.restore(jpeg)
        assert not client.is_ready()


@pytest.mark.parametrize(
    "url",
    [
        "ipv4:localhost:8001",
        "ipv4:127.0.0.1",
        "ipv4:127.0.0.1:8001,",
        "ipv4:[::1]:8001",
        "ipv6:::1:8001",
        "ipv6:127.0.0.1:8001",
        "ipv6:[::1]:0",
        "ipv4:",
    ],
)
def test_wrong_lists_are_refused(url):
    with pytest.raises(ValueError, match=r"dns:///HOST:PORT"):
        PikFixClient(url)


@pytest.mark.parametrize(
    "url", ["dns:///pikfix", "dns:///pikfix:0", "dns://pikfix:8001", "127.0.0.1:1,127.0.0.1:2"]
)
def test_wrong_names_are_refused(url):
    with pytest.raises(ValueError, match="HOST:PORT"):
        PikFixClient(url)


def test_what_is_spread():
    """A name may stand for several servers; one address is one, and so is this machine."""
    assert parse_address("pikfix:8001").spread
    assert parse_address("dns:///pikfix.photos.svc:8001").spread
    for url in ("10.0.0.1:8001", "[::1]:8001", "localhost:8001", "dns:///localhost:8001"):
        assert not parse_address(url).spread
    assert parse_address("ipv4:10.0.0.1:8001").target == "10.0.0.1:8001"


def test_a_list_with_tls_needs_the_servers_name():
    with pytest.raises(ValueError, match="server_name"):
        PikFixClient("ipv4:10.0.0.1:1,10.0.0.2:1", tls=Tls())
    PikFixClient("ipv4:10.0.0.1:1,10.0.0.2:1", tls=Tls(server_name="pikfix")).close()


class Proxy:
    """An HTTP proxy that connects to one port whatever it is asked for, or answers a status."""

    def __init__(self, port, status="200 OK"):
        self.asked = []
        self._port, self._status = port, status
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                near = self._socket.accept()[0]
                self.asked.append(near.recv(4096).split(b"\r\n")[0].decode())
                near.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
                if not self._status.startswith("200"):
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one, other):
        with contextlib.suppress(OSError):
            while part := one.recv(65536):
                other.sendall(part)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy(server, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    running = Proxy(server.port)
    monkeypatch.setenv("http_proxy", running.url)
    yield running
    running.close()


def test_a_proxy_is_asked_for_the_servers_name(kind, proxy, jpeg):
    with kind("triton.invalid:8001") as client:
        assert client.restore(jpeg).image.size == (64, 48)
    assert proxy.asked == ["CONNECT triton.invalid:8001 HTTP/1.1"]


def test_a_proxy_is_passed_by_on_purpose(kind, proxy, server, jpeg):
    with (
        kind("triton.invalid:8001", proxy=False, retry=Retry.never()) as client,
        pytest.raises(ServerUnreachableError),
    ):
        client.restore(jpeg)
    for url in (server.url, f"dns:///localhost:{server.port}", f"ipv4:{server.url},127.0.0.9:9"):
        with kind(url) as client:
            client.restore(jpeg)
    assert proxy.asked == []
    with kind(f"localhost:{server.port}", proxy=True) as client:
        client.restore(jpeg)
    assert proxy.asked == [f"CONNECT localhost:{server.port} HTTP/1.1"]


def test_a_proxy_that_refuses_is_named(kind, server, monkeypatch, proxy, jpeg):
    refusing = Proxy(server.port, "407 Proxy Authentication Required")
    monkeypatch.setenv("http_proxy", refusing.url)
    with (
        kind("triton.invalid:8001", retry=Retry.never()) as client,
        pytest.raises(ProxyError, match=r"407.*no_proxy") as caught,
    ):
        client.restore(jpeg)
    refusing.close()
    assert not caught.value.passing
