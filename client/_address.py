"""Addresses of servers: one, a name that stands for several, or a list.

gRPC sends everything to the first address that answers unless it is told to spread calls, and
takes whatever it does not understand for a name to look up; both are settled here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_PORT = r":(?P<port>\d{1,5})"
_HOST = r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s,:/\[\]]+)"
_PLAIN = re.compile(_HOST + _PORT)
# dns:///HOST:PORT asks the system's resolvers, dns://RESOLVER/HOST:PORT another one.
_DNS = re.compile(r"dns:(?://(?P<resolver>[^\s/]*)/)?" + _HOST + _PORT)
_LIST = re.compile(r"ipv(?P<version>[46]):(?P<places>\S+)")

# How many servers a name stands for is not known here.
_TRIES_OF_A_NAME = 4


@dataclass(frozen=True)
class Address:
    """Where calls go.

    Attributes:
        target: what gRPC is given.
        hosts: names or addresses without brackets; several of a list.
        authority: what calls name as their server, where gRPC would make it up of a list.
        spread: whether there may be several servers, which share the calls.
    """

    target: str
    hosts: tuple[str, ...]
    authority: str | None = None
    spread: bool = False

    @property
    def listed(self) -> bool:
        """Whether several addresses were given, which leaves nothing to look up."""
        return len(self.hosts) > 1

    @property
    def tries(self) -> int:
        """How many servers to ask, one after another, whether they are ready."""
        if self.listed:
            return len(self.hosts)
        return _TRIES_OF_A_NAME if self.spread else 1

    @property
    def loopback(self) -> bool:
        """Whether calls stay on this machine."""
        return all(map(_is_loopback, self.hosts))


def parse_address(url: str) -> Address:
    """Return the address that a text gives; ValueError says what to write."""
    if not isinstance(url, str):
        raise _wrong(url)
    if (match := _LIST.fullmatch(url)) is not None:
        return _listed(url, match["version"], match["places"].split(","))
    if (match := _DNS.fullmatch(url) or _PLAIN.fullmatch(url)) is None or not _is_port(match):
        raise _wrong(url)
    host = match["host"].strip("[]")
    # The calls of a name are spread over what it stands for. `localhost` is one server at two
    # addresses, at one of which often nobody listens, or somebody else.
    return Address(url, (host,), spread=not (_is_loopback(host) or _is_ip(host)))


def _listed(url: str, version: str, places: list[str]) -> Address:
    hosts = []
    for place in places:
        match = _PLAIN.fullmatch(place)
        if match is None or not _is_port(match):
            raise _wrong(url)
        host = match["host"].strip("[]")
        try:
            fits = ipaddress.ip_address(host).version == int(version)
        except ValueError:
            fits = False
        if not fits or (version == "6") != place.startswith("["):
            raise ValueError(
                f"{url!r} is no list of servers: {place} is not "
                + ("[IPV6]:PORT" if version == "6" else "IPV4:PORT")
                + "; names go as dns:///HOST:PORT"
            )
        hosts.append(host)
    if len(places) == 1:
        return Address(places[0], tuple(hosts))
    return Address(url, tuple(hosts), authority=places[0], spread=True)


def _wrong(url: object) -> ValueError:
    return ValueError(
        f"{url!r} is no server address; give HOST:PORT of Triton's gRPC port without http://, "
        "such as localhost:8001 or [::1]:8001, and for several servers dns:///HOST:PORT or "
        "ipv4:ADDRESS:PORT,ADDRESS:PORT"
    )


def _is_port(match: re.Match[str]) -> bool:
    return 0 < int(match["port"]) < 65536


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
