"""The gRPC channel: address, channel arguments, credentials.

The only module that names gRPC and tritonclient, neither of which ships types.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from pikfix.client._address import Address
from pikfix.client._errors import ForkedClientError
from pikfix.client._options import Limits, Retry, Timeout, Tls

__all__ = [
    "Address",
    "InferenceServerException",
    "grpc",
    "open_async_channel",
    "open_channel",
    "triton",
    "triton_aio",
]


def _service_config(address: Address, retry: Retry) -> str | None:
    config: dict[str, Any] = {}
    if address.spread:
        # gRPC's own choice, pick_first, would leave all replicas but one without work.
        config["loadBalancingConfig"] = [{"round_robin": {}}]
    if retry.attempts > 1:
        config |= _repeats(retry)
    return json.dumps(config) if config else None


def _repeats(retry: Retry) -> dict[str, Any]:
    policy = {
        "maxAttempts": retry.attempts,
        "initialBackoff": f"{retry.initial_backoff:g}s",
        "maxBackoff": f"{retry.max_backoff:g}s",
        "backoffMultiplier": retry.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    # Status calls are not repeated: who polls is_ready() wants to know how it is now.
    method = {"service": "inference.GRPCInferenceService", "method": "ModelInfer"}
    return {
        "methodConfig": [{"name": [method], "retryPolicy": policy}],
        "retryThrottling": {
            "maxTokens": retry.budget_tokens,
            "tokenRatio": retry.budget_refill,
        },
    }


def channel_arguments(
    address: Address,
    timeout: Timeout,
    limits: Limits,
    retry: Retry,
    *,
    tls: Tls | None,
    proxy: bool | None,
) -> list[tuple[str, Any]]:
    """Return gRPC's channel arguments for the given choices."""
    arguments: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.keepalive_time_ms", round(limits.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout * 1000)),
        # A long request sends nothing for minutes; the default would stop after two pings.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.enable_retries", 1),
        # A request that does not fit into this buffer is silently never repeated, and the
        # default of 256 KiB is smaller than most photos.
        ("grpc.per_rpc_retry_buffer_size", limits.message_bytes),
        # gRPC's name for the time that one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", round(timeout.connect * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        # When a replica goes, the name is asked for others; gRPC would wait up to 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        # One connection per client: a new client does not inherit another's wait after a
        # refused connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    config = _service_config(address, retry)
    if config is not None:
        arguments.append(("grpc.service_config", config))
    if tls is not None and tls.server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", tls.server_name))
    elif address.authority is not None:
        arguments.append(("grpc.default_authority", address.authority))
    if proxy is None:
        # gRPC would send even loopback traffic through $https_proxy. A proxy is asked for one
        # server by its name; there is none for a list of addresses.
        proxy = not (address.loopback or address.listed)
    arguments.append(("grpc.enable_http_proxy", int(proxy)))
    return arguments


# Python's thread that polls for gRPC's asyncio, in every process that uses it. A forked process
# has what it left in memory and no such thread.
_POLLER = "_poll_wrapper"


class _Forks:
    """Remembers whether this process was forked while gRPC's asyncio was in use."""

    def __init__(self) -> None:
        self.poller_lost = False
        self._polled = False
        if hasattr(os, "register_at_fork"):  # Windows cannot fork
            os.register_at_fork(before=self._before, after_in_child=self._in_child)

    def _before(self) -> None:
        self._polled = any(_POLLER in thread.name for thread in threading.enumerate())

    def _in_child(self) -> None:
        self.poller_lost = self.poller_lost or self._polled


_FORKS = _Forks()


def _open(kind: Any, address: Address, tls: Tls | None, arguments: list[tuple[str, Any]]) -> Any:
    credentials = None
    if tls is not None:
        root, key, chain = tls.read()
        credentials = grpc.ssl_channel_credentials(root, key, chain)
    return kind.InferenceServerClient(address.target, creds=credentials, channel_args=arguments)


def open_channel(
    address: Address,
    timeout: Timeout,
    limits: Limits,
    retry: Retry,
    *,
    tls: Tls | None,
    proxy: bool | None,
) -> Any:
    """Return a tritonclient; it connects at the first call."""
    arguments = channel_arguments(address, timeout, limits, retry, tls=tls, proxy=proxy)
    return _open(triton, address, tls, arguments)


def open_async_channel(
    address: Address,
    timeout: Timeout,
    limits: Limits,
    retry: Retry,
    *,
    tls: Tls | None,
    proxy: bool | None,
) -> Any:
    """Return a tritonclient for asyncio; call it inside the loop that will use it.

    Raises:
        ForkedClientError: gRPC's asyncio was in use when this process was forked; its thread is
            not here, and a call would wait for ever.
    """
    if _FORKS.poller_lost:
        raise ForkedClientError(
            "this process was forked while another client for asyncio was open, and gRPC cannot "
            "be used with asyncio here any more; PikFixClient can"
        )
    arguments = channel_arguments(address, timeout, limits, retry, tls=tls, proxy=proxy)
    return _open(triton_aio, address, tls, arguments)
