"""A gRPC server that speaks Triton's protocol and answers as a test asks it to.

Run as a program it prints its port and serves until it is killed; with ``hang`` it prints a line
for each request::

    python fake_triton.py [hang]
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from pikfix.client import Retry

QUICK = Retry(initial_backoff=0.02, max_backoff=0.05)
"""Repeats that do not hold a test up."""


def report_of(width, height, format, **changes):
    report = {
        "photo": {"width": width, "height": height, "format": format, "mode": "L", "bit_depth": 8},
        "result": {"width": width, "height": height, "format": format},
        "references": [],
        "colorized": False,
        "mean_confidence": None,
        "seconds": {"decode_photo": 0.01, "networks": 0.02, "encode_photo": 0.03},
        "model_version": "1",
        "warnings": [],
    }
    report.update(changes)
    return report


def inputs_of(request):
    """Return the request's inputs by name: lists of bytes, or arrays."""
    found = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = deserialize_bytes_tensor(raw).reshape(list(tensor.shape))
        else:
            array = np.frombuffer(raw, np.float32).reshape(list(tensor.shape))
        found[tensor.name] = array
    return found


def response(model, **outputs):
    """Return an answer with outputs given as bytes or arrays."""
    answer = service_pb2.ModelInferResponse(model_name=model, model_version="1")
    for name, value in outputs.items():
        output = answer.outputs.add()
        output.name = name
        if isinstance(value, bytes):
            array = np.array([[value]], dtype=np.object_)
            output.datatype = "BYTES"
            answer.raw_output_contents.append(serialize_byte_tensor(array).item())
        else:
            array = value
            output.datatype = {"float32": "FP32", "float64": "FP64"}[str(array.dtype)]
            answer.raw_output_contents.append(array.tobytes())
        output.shape.extend(array.shape)
    return answer


def answer_photo(request, context):
    """Answer as a server would that turns photos grey."""
    inputs = inputs_of(request)
    options = json.loads(inputs["options"].flat[0]) if "options" in inputs else {}
    try:
        image = Image.open(io.BytesIO(inputs["photo"].flat[0]))
        image.load()
    except OSError as error:
        context.abort(
            grpc.StatusCode.INTERNAL,
            f"in ensemble 'pikfix_photo', [decode_photo] bad_photo: {error}",
        )
    format = options.get("format", "png")
    buffer = io.BytesIO()
    image.convert("L").save(buffer, format.upper())
    references = inputs.get("reference", np.empty((1, 0)))
    colorized = bool(references.size) and options.get("color", True)
    report = report_of(
        *image.size,
        format,
        colorized=colorized,
        references=[
            {"source": "request", "name": None, "score": None, "share": 1 / references.size}
            for _ in references.flat
        ],
        warnings=[] if colorized else ["no reference: left grey"],
    )
    if image.info.get("content") == "graphic":
        report["photo"] |= {"content": "graphic", "rectangle": None}
    return response(
        request.model_name, result=buffer.getvalue(), report=json.dumps(report).encode()
    )


def answer_tensors(request, context):
    photo_l = inputs_of(request)["photo_l"]
    batch, _, height, width = photo_l.shape
    ab = np.zeros((batch, 2, height, width), np.float32)
    return response(request.model_name, restored_l=photo_l.copy(), ab=ab)


def answer(request, context):
    return (answer_photo if request.model_name == "pikfix_photo" else answer_tensors)(
        request, context
    )


def hang(request, context):
    while context.is_active():
        time.sleep(0.02)
    return service_pb2.ModelInferResponse()


def announce_and_hang(request, context):
    print("request", flush=True)
    return hang(request, context)


def fails(server, fake_status, text, times=None):
    """Let the server fail with a status: always, or the first ``times`` times."""

    def respond(request, context):
        if times is None or len(server.requests) <= times:
            context.abort(fake_status, text)
        return answer(request, context)

    server.answer = respond


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The server.

    Attributes:
        answer: called with (request, context) for every inference.
        ask: called with the same before every question whether server or model are ready.
        requests: all inference requests, in order of arrival.
        metadata: the metadata of each.
        remaining: the seconds that each one's gRPC deadline left, or None.
        peers: the peer address of each.
        most_at_once: the largest number of requests that were in flight together.
        models: the models it knows, with their states.
    """

    def __init__(self, credentials=None, port=0, host="127.0.0.1", options=()):
        self.answer = answer
        self.ask = lambda request, context: None
        self.requests = []
        self.metadata = []
        self.remaining = []
        self.peers = []
        self.most_at_once = 0
        self.ready = True
        self.models = {"pikfix": "READY", "pikfix_photo": "READY"}
        self._now = 0
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16),
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.so_reuseport", 0),
                *options,
            ],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"{host}:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.url = f"{host}:{self.port}"
        self._server.start()

    def close(self):
        self._server.stop(grace=None).wait()

    def ServerReady(self, request, context):
        self.ask(request, context)
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, context):
        self.ask(request, context)
        # Triton says the same of a model that it does not have.
        return service_pb2.ModelReadyResponse(ready=self.models.get(request.name) == "READY")

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def RepositoryIndex(self, request, context):
        index = service_pb2.RepositoryIndexResponse()
        for name, state in self.models.items():
            index.models.add(name=name, version="1", state=state)
        return index

    def ModelInfer(self, request, context):
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            # gRPC gives a far future where the caller set no deadline.
            left = context.time_remaining()
            self.remaining.append(None if left is None or left > 1e6 else left)
            self.peers.append(context.peer())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self._know(request.model_name, context)
            return self.answer(request, context)
        finally:
            with self._lock:
                self._now -= 1

    def _know(self, name, context):
        if name not in self.models:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found"
            )


if __name__ == "__main__":
    server = FakeTriton()
    if "hang" in sys.argv[1:]:
        server.answer = announce_and_hang
    print(server.port, flush=True)
    threading.Event().wait()
