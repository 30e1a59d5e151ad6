"""The gRPC channel: address, channel arguments, credentials.

The only module that names gRPC and tritonclient, neither of which ships types.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from pikfix.client._options import Limits, Retry, Timeout, Tls

__all__ = [
    "InferenceServerException",
    "check_url",
    "grpc",
    "open_async_channel",
    "open_channel",
    "triton",
    "triton_aio",
]

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def check_url(url: str) -> str:
    """Return ``url`` if it has the form ``host:port``; ValueError says what to write."""
    match = _ADDRESS.fullmatch(url) if isinstance(url, str) else None
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(
            f"{url!r} is no server address; give HOST:PORT of Triton's gRPC port without a "
            "scheme, such as localhost:8001 or [::1]:8001"
        )
    return url


def _is_loopback(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _service_config(retry: Retry) -> str:
    policy = {
        "maxAttempts": retry.attempts,
        "initialBackoff": f"{retry.initial_backoff:g}s",
        "maxBackoff": f"{retry.max_backoff:g}s",
        "backoffMultiplier": retry.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    # Status calls are not repeated: who polls is_ready() wants to know how it is now.
    method = {"service": "inference.GRPCInferenceService", "method": "ModelInfer"}
    return json.dumps(
        {
            "methodConfig": [{"name": [method], "retryPolicy": policy}],
            "retryThrottling": {
                "maxTokens": retry.budget_tokens,
                "tokenRatio": retry.budget_refill,
            },
        }
    )


def channel_arguments(
    url: str, timeout: Timeout, limits: Limits, retry: Retry, tls: Tls | None
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
        # One connection per client: a new client does not inherit another's wait after a
        # refused connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if retry.attempts > 1:
        arguments.append(("grpc.service_config", _service_config(retry)))
    if tls is not None and tls.server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", tls.server_name))
    if _is_loopback(url):
        # gRPC would send even loopback traffic through $https_proxy.
        arguments.append(("grpc.enable_http_proxy", 0))
    return arguments


def _open(kind: Any, url: str, tls: Tls | None, arguments: list[tuple[str, Any]]) -> Any:
    credentials = None
    if tls is not None:
        root, key, chain = tls.read()
        credentials = grpc.ssl_channel_credentials(root, key, chain)
    return kind.InferenceServerClient(url, creds=credentials, channel_args=arguments)


def open_channel(url: str, timeout: Timeout, limits: Limits, retry: Retry, tls: Tls | None) -> Any:
    """Return a tritonclient; it connects at the first call."""
    return _open(triton, url, tls, channel_arguments(url, timeout, limits, retry, tls))


def open_async_channel(
    url: str, timeout: Timeout, limits: Limits, retry: Retry, tls: Tls | None
) -> Any:
    """Return a tritonclient for asyncio; call it inside the loop that will use it."""
    return _open(triton_aio, url, tls, channel_arguments(url, timeout, limits, retry, tls))
