"""Connections that environment variables describe, tokens, and what is refused."""

from __future__ import annotations

import pytest

from pikfix.client import PikFixClient, Tls
from pikfix.client._environment import connection

EVERYTHING = {
    "PIKFIX_URL": "dns:///pikfix:8001",
    "PIKFIX_TOKEN": "secret",
    "PIKFIX_HEADERS": "X-Tenant: museum\n\ntraceparent: 00-1:2\n",
    "PIKFIX_TLS_CA": "ca.pem",
    "PIKFIX_TLS_CERT": "own.pem",
    "PIKFIX_TLS_KEY": "own.key",
    "PIKFIX_TLS_SERVER_NAME": "pikfix",
    "PIKFIX_PROXY": "0",
}


def test_every_variable_has_its_argument():
    assert connection(EVERYTHING) == {
        "url": "dns:///pikfix:8001",
        "token": "secret",
        "headers": {"X-Tenant": "museum", "traceparent": "00-1:2"},
        "tls": Tls("ca.pem", "own.key", "own.pem", "pikfix"),
        "proxy": False,
    }


def test_empty_variables_are_none():
    assert connection(dict.fromkeys(EVERYTHING, "")) == {}
    assert connection({"PIKFIX_TLS": "0"}) == {}
    assert connection({"PIKFIX_TLS": "true"}) == {"tls": Tls()}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PIKFIX_TLS": "maybe"}, "PIKFIX_TLS must be 1 or 0"),
        ({"PIKFIX_PROXY": "http://proxy"}, "PIKFIX_PROXY must be 1 or 0"),
        ({"PIKFIX_HEADERS": "secret"}, "NAME: VALUE"),
        ({"PIKFIX_TLS_KEY": "own.key"}, "together"),
    ],
)
def test_variables_that_say_nothing_usable(variables, said):
    with pytest.raises(ValueError, match=said) as caught:
        connection(variables)
    assert "secret" not in str(caught.value)


def test_a_client_takes_them_where_it_is_asked_to(kind, server, jpeg, monkeypatch):
    monkeypatch.setenv("PIKFIX_URL", server.url)
    monkeypatch.setenv("PIKFIX_TOKEN", "secret")
    make = getattr(kind, "from_environment", None)
    if make is None:
        from pikfix.client import AsyncPikFixClient

        assert AsyncPikFixClient.from_environment().url == server.url
        return
    with make() as client:
        client.restore(jpeg)
    with make(token="other") as client:
        client.restore(jpeg)
    # A token goes to no server that was not meant.
    with kind(server.url) as client:
        client.restore(jpeg)
    sent = [one.get("authorization") for one in server.metadata]
    assert sent == ["Bearer secret", "Bearer other", None]


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": ""},
        {"token": "two words"},
        {"token": "line\n"},
        {"token": 7},
        {"token": "a", "headers": {"Authorization": "Bearer b"}},
        {"headers": {"x": "naïve-secret"}},
        {"proxy": "http://proxy:3128"},
    ],
)
def test_what_cannot_be_sent(arguments):
    with pytest.raises(ValueError, match=r"token|header|proxy") as caught:
        PikFixClient("localhost:8001", **arguments)
    assert "naïve-secret" not in str(caught.value)
    assert "two words" not in str(caught.value)
