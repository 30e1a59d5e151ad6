"""Is the server able to answer? Readiness does not say: it stays 200 while a step is dead.

A tiny request through the whole ensemble does (triton-inference-server/server#7230, #8518).
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from pikfix.protocol.deadline import deadline_in
from pikfix.protocol.names import PHOTO_MODELS, TENSOR_MODEL

State = Literal["healthy", "busy", "unhealthy", "down"]

CANARY_SIDE = 32

# How server 2.51 says that the process of a model instance is gone.
DEAD_STUB = "is not healthy"


@dataclass(frozen=True)
class Health:
    """What a check found; `problem` is one line, None when healthy.

    busy: the canary did not come back in time or was refused for want of room. That is no
    failure: one large photo on a small machine keeps every later request waiting.
    """

    state: State
    problem: str | None = None
    seconds: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether the canary was answered."""
        return self.state == "healthy"


def tiny_png(side: int = CANARY_SIDE) -> bytes:
    """A grey ramp as an 8-bit greyscale PNG file, made without an imaging library."""
    rows = b"".join(b"\0" + bytes(x * 255 // side for x in range(side)) for _ in range(side))

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _request(model: str) -> tuple[list[Any], str]:
    """Inputs of the canary and the output whose presence proves an answer."""
    if model in PHOTO_MODELS.values():
        photo = grpc.InferInput("photo", [1, 1], "BYTES")
        photo.set_data_from_numpy(np.array([[tiny_png()]], dtype=object))
        return [photo], "result"
    ramp = np.linspace(-1, 1, CANARY_SIDE, dtype=np.float32)
    luminance = np.broadcast_to(ramp, (1, 1, CANARY_SIDE, CANARY_SIDE))
    lab = np.broadcast_to(luminance[:, None], (1, 1, 3, CANARY_SIDE, CANARY_SIDE))
    inputs = []
    for name, array in (("photo_l", luminance), ("reference_lab", lab)):
        tensor = grpc.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    return inputs, "restored_l"


def canary(url: str, timeout_s: float = 10.0) -> Health:
    """Send a tiny photo through the server's ensemble and say whether it came back.

    url: host:port of the gRPC endpoint. The photo goes to the first system's model for files, or to
    `pikfix` where the repository has only that; without any, liveness and readiness count.
    """
    client = grpc.InferenceServerClient(url)
    start = time.monotonic()
    try:
        models = {
            model.name
            for model in client.get_model_repository_index(client_timeout=timeout_s).models
            if model.state == "READY"
        }
        name = next((n for n in (*PHOTO_MODELS.values(), TENSOR_MODEL) if n in models), None)
        if name is None:
            if client.is_server_ready(client_timeout=timeout_s):
                return Health("healthy", seconds=time.monotonic() - start)
            return Health("unhealthy", "the server is not ready")
        inputs, output = _request(name)
        # Steps drop the request once nobody waits for it: canaries must not fill a busy queue.
        deadline = deadline_in(timeout_s)
        answer = client.infer(name, inputs, client_timeout=timeout_s, parameters=deadline)
        seconds = time.monotonic() - start
        if answer.as_numpy(output) is None:
            return Health("unhealthy", f"{name} answered without {output}", seconds)
        return Health("healthy", seconds=seconds)
    except InferenceServerException as error:
        return _judge(error)
    finally:
        client.close()


def _judge(error: Any) -> Health:
    message = " ".join(str(error.message()).split())
    status = str(error.status() or "")
    if DEAD_STUB in message:
        return Health("unhealthy", message)
    if "DEADLINE_EXCEEDED" in status or "deadline_exceeded" in message:
        return Health("busy", "no answer in time")
    if "UNAVAILABLE" in status:
        if "connect" in message.lower() or "socket" in message.lower():
            return Health("down", message)
        # Of Triton's queues, or of decode_photo's places for photos.
        if "queue" in message.lower() or "] busy: " in message:
            return Health("busy", message)
    return Health("unhealthy", message)


def completed(url: str, timeout_s: float = 5.0) -> int | None:
    """Executions of all models since the start: progress, while it grows. None if unanswered."""
    client = grpc.InferenceServerClient(url)
    try:
        statistics = client.get_inference_statistics(client_timeout=timeout_s)
        return sum(int(model.execution_count) for model in statistics.model_stats)
    except InferenceServerException:
        return None
    finally:
        client.close()
