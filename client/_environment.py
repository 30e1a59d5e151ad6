"""How to reach a server, as environment variables say it.

A client reads them only where it is asked to, by ``from_environment``: a token goes to no server
that was not meant. The command line offers the same variables for its options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pikfix.client._options import Tls

URL = "PIKFIX_URL"
"""The address."""
TOKEN = "PIKFIX_TOKEN"
"""The token, without the word Bearer."""
HEADERS = "PIKFIX_HEADERS"
"""Lines of ``NAME: VALUE``."""
TLS = "PIKFIX_TLS"
"""1 encrypts the connection, as each of the following does."""
TLS_CA = "PIKFIX_TLS_CA"
TLS_CERT = "PIKFIX_TLS_CERT"
TLS_KEY = "PIKFIX_TLS_KEY"
TLS_SERVER_NAME = "PIKFIX_TLS_SERVER_NAME"
PROXY = "PIKFIX_PROXY"
"""1 goes through the environment's proxy, 0 past it."""

_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def parse_headers(lines: list[str]) -> dict[str, str]:
    """Return headers given as ``NAME: VALUE``; ValueError names one that is not."""
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            # Not the line itself: it may hold a secret.
            raise ValueError("a header is given as NAME: VALUE")
        headers[name.strip()] = value.strip()
    return headers


def connection(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a client's arguments ``url``, ``tls``, ``token``, ``headers`` and ``proxy``.

    Args:
        environment: the variables; those of the process where None.

    Raises:
        ValueError: a variable's value is none that it can have.
    """
    values = os.environ if environment is None else environment
    arguments: dict[str, Any] = {}
    if values.get(URL):
        arguments["url"] = values[URL]
    if values.get(TOKEN):
        arguments["token"] = values[TOKEN]
    if values.get(HEADERS):
        lines = [line for line in values[HEADERS].splitlines() if line.strip()]
        arguments["headers"] = parse_headers(lines)
    files = {
        "root_certificates": values.get(TLS_CA) or None,
        "private_key": values.get(TLS_KEY) or None,
        "certificate_chain": values.get(TLS_CERT) or None,
        "server_name": values.get(TLS_SERVER_NAME) or None,
    }
    if any(files.values()) or _truth(values, TLS):
        arguments["tls"] = Tls(**files)
    proxy = _truth(values, PROXY)
    if proxy is not None:
        arguments["proxy"] = proxy
    return arguments


def _truth(values: Mapping[str, str], name: str) -> bool | None:
    text = values.get(name)
    if not text:
        return None
    if text.lower() not in _TRUTHS:
        raise ValueError(f"{name} must be 1 or 0, got {text!r}")
    return _TRUTHS[text.lower()]
