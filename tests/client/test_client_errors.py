"""The error tree and the way from Triton's status and text to it."""

from __future__ import annotations

import inspect
import pickle
import re

import grpc
import pytest

import pikfix.client
from pikfix.client import _errors, _mapping
from pikfix.client._mapping import CODE_ERRORS, STATUS_ERRORS, map_error

CLASSES = {
    name: value
    for name, value in vars(_errors).items()
    if inspect.isclass(value) and issubclass(value, _errors.PikFixError)
}


def test_all_is_sorted_and_is_what_is_public():
    public = {
        name
        for name, value in vars(pikfix.client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert pikfix.client.__all__ == sorted(public)


def test_every_error_is_public():
    assert set(CLASSES) <= set(pikfix.client.__all__)


def test_the_tree_drawn_is_the_tree():
    """Parents and children as drawn at the top of the file, by indentation."""
    drawn, path = {}, []
    for line in _errors.__doc__.splitlines():
        match = re.match(r"^ {4}([│├└─ ]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else None
    actual = {
        name: value.__base__.__name__ if value.__base__ is not Exception else None
        for name, value in CLASSES.items()
    }
    assert drawn == actual


def test_no_status_is_unmapped():
    assert set(STATUS_ERRORS) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
@pytest.mark.parametrize("text", ["", None, "something new"])
def test_every_status_gives_an_error_of_the_tree(code, text):
    error = map_error(str(code), text, model="pikfix_photo", url="h:1")
    # An empty UNIMPLEMENTED is the one status whose meaning depends on an empty text.
    if code is grpc.StatusCode.UNIMPLEMENTED and not text:
        assert type(error) is _errors.WrongServerError
    else:
        assert type(error) is STATUS_ERRORS[code.name]
    assert error.status == code.name
    assert "\n" not in str(error)
    assert str(error).startswith("pikfix_photo at h:1: ")


def test_every_code_of_our_steps_is_mapped():
    contract = (
        "bad_photo unsupported_photo missing_package bad_reference bad_options photo_too_large"
        " bad_tensor busy deadline_exceeded out_of_memory internal"
    )
    assert set(CODE_ERRORS) == set(contract.split())


@pytest.mark.parametrize(
    ("status", "text", "model", "kind", "step"),
    [
        (
            "INTERNAL",
            "in ensemble 'pikfix_photo', [decode_photo] bad_photo: cannot identify",
            "pikfix_photo",
            "InvalidPhotoError",
            "decode_photo",
        ),
        (
            "INVALID_ARGUMENT",
            "in ensemble 'pikfix_photo', Failed to process the request(s) for model "
            "'decode_photo_0_0', message: TritonModelException: [decode_photo] photo_too_large: "
            "120 megapixels\n\nAt:\n  /models/decode_photo/1/model.py(12): execute\n",
            "pikfix_photo",
            "PhotoTooLargeError",
            "decode_photo",
        ),
        (
            "INVALID_ARGUMENT",
            "in ensemble 'pikfix_photo', [decode_photo] unsupported_photo: a PDF document",
            "pikfix_photo",
            "UnsupportedPhotoError",
            "decode_photo",
        ),
        (
            "INVALID_ARGUMENT",
            "in ensemble 'pikfix_photo', [decode_photo] missing_package: pillow-heif",
            "pikfix_photo",
            "MissingPackageError",
            "decode_photo",
        ),
        (
            # Of a newer server than the client: still what was sent, and its words.
            "INVALID_ARGUMENT",
            "in ensemble 'pikfix_photo', [decode_photo] new_code: a photo of tomorrow",
            "pikfix_photo",
            "InvalidInputError",
            None,
        ),
        (
            "INTERNAL",
            "[decode_photo] bad_reference: the second reference is empty",
            "pikfix_photo",
            "InvalidReferenceError",
            "decode_photo",
        ),
        (
            "INTERNAL",
            "[decode_photo] bad_options: unknown key 'colour'",
            "pikfix_photo",
            "InvalidOptionsError",
            "decode_photo",
        ),
        (
            "INVALID_ARGUMENT",
            "in ensemble 'pikfix', [restore] bad_tensor: photo_l holds NaN",
            "pikfix",
            "InvalidTensorError",
            "restore",
        ),
        (
            "INTERNAL",
            "in ensemble 'pikfix_photo', [colorize] bad_tensor: warped_1 has 12 channels",
            "pikfix_photo",
            "StepFailedError",
            "colorize",
        ),
        (
            "INTERNAL",
            "[similarity] deadline_exceeded: 1.2 s late",
            "pikfix_photo",
            "DeadlineExceededError",
            "similarity",
        ),
        (
            "INTERNAL",
            "in ensemble 'pikfix_photo', [colorize] internal: out of memory",
            "pikfix_photo",
            "StepFailedError",
            "colorize",
        ),
        (
            "INTERNAL",
            "in ensemble 'pikfix_photo', Stub process 'decode_photo_0_0' is not healthy.",
            "pikfix_photo",
            "StepCrashedError",
            "decode_photo",
        ),
        (
            "UNAVAILABLE",
            "Received http2 header with status: 503",
            "pikfix_photo",
            "ServerNotReadyError",
            None,
        ),
        (
            "UNAVAILABLE",
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
            "pikfix_photo",
            "ServerNotReadyError",
            None,
        ),
        (
            "INTERNAL",
            "Received RST_STREAM with error code 2",
            "pikfix_photo",
            "ConnectionLostError",
            None,
        ),
        (
            "UNAVAILABLE",
            "in ensemble 'pikfix_photo', Exceeds maximum queue size",
            "pikfix_photo",
            "ServerBusyError",
            None,
        ),
        ("UNAVAILABLE", "Request timeout expired", "pikfix_photo", "ServerBusyError", None),
        (
            "UNAVAILABLE",
            "Request for unknown model: 'pikfix_photo' has no available versions",
            "pikfix_photo",
            "ServerNotReadyError",
            None,
        ),
        (
            "NOT_FOUND",
            "Request for unknown model: 'pikfix' is not found",
            "pikfix",
            "ModelNotFoundError",
            None,
        ),
        ("UNAVAILABLE", "Server not ready", None, "ServerNotReadyError", None),
        (
            "INVALID_ARGUMENT",
            "[request id: <id_unknown>] unexpected shape for input 'photo_l'",
            "pikfix",
            "InvalidTensorError",
            None,
        ),
        (
            "INVALID_ARGUMENT",
            "unexpected inference input 'options' for model 'pikfix_photo'",
            "pikfix_photo",
            "InvalidInputError",
            None,
        ),
        (
            "RESOURCE_EXHAUSTED",
            "Received message larger than max (5 vs. 4)",
            "pikfix_photo",
            "MessageTooLargeError",
            None,
        ),
        ("CANCELLED", "", "pikfix_photo", "RequestCancelledError", None),
        ("ABORTED", "try again", "pikfix_photo", "RequestCancelledError", None),
        ("UNKNOWN", "Received http2 header with status: 500", None, "ServerNotReadyError", None),
        (
            "UNAVAILABLE",
            "unexpected HTTP status code received from server: 502 (Bad Gateway); "
            'transport: received unexpected content-type "text/html"',
            None,
            "ServerNotReadyError",
            None,
        ),
        (
            "UNAVAILABLE",
            "upstream connect error or disconnect/reset before headers. reset reason: remote "
            "connection failure, transport failure reason: TLS error: Connection reset",
            None,
            "ServerNotReadyError",
            None,
        ),
        (
            "UNKNOWN",
            "Received http2 header with status: 413",
            "pikfix_photo",
            "MessageTooLargeError",
            None,
        ),
        ("UNKNOWN", "Received http2 header with status: 400", None, "WrongServerError", None),
        (
            "UNAUTHENTICATED",
            "Received http2 header with status: 401",
            None,
            "AccessDeniedError",
            None,
        ),
        (
            "UNAVAILABLE",
            "connections to all backends failing; last error: UNKNOWN: ipv4:10.0.0.1:8001: Failed "
            "to connect to remote host: Connection refused",
            None,
            "ServerUnreachableError",
            None,
        ),
        (
            "UNAVAILABLE",
            "connections to all backends failing; last error: UNKNOWN: ipv4:10.0.0.1:3128: HTTP "
            "proxy returned response code 502",
            None,
            "ServerUnreachableError",
            None,
        ),
        ("RESOURCE_EXHAUSTED", "quota", "pikfix_photo", "ServerBusyError", None),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", None, "ConnectionLostError", None),
        ("UNAVAILABLE", "too_many_pings", None, "ConnectionLostError", None),
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:8001: "
            "connect: No route to host",
            None,
            "ServerUnreachableError",
            None,
        ),
        (
            "UNAVAILABLE",
            "DNS resolution failed for nowhere:8001: C-ares status is not ARES_SUCCESS",
            None,
            "ServerUnreachableError",
            None,
        ),
        (
            "UNAVAILABLE",
            "Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED",
            None,
            "TlsError",
            None,
        ),
        ("UNIMPLEMENTED", "Method not found!", None, "WrongServerError", None),
        (
            "UNIMPLEMENTED",
            "Received http2 header with status: 404",
            None,
            "WrongServerError",
            None,
        ),
        ("UNIMPLEMENTED", "doesn't support sequences", None, "StepFailedError", None),
    ],
)
def test_texts_of_triton_and_grpc(status, text, model, kind, step):
    error = map_error(f"StatusCode.{status}", text, model=model, url="host:8001")
    assert type(error).__name__ == kind
    assert error.step == step
    assert error.model == model
    message = str(error)
    assert "\n" not in message
    assert "host:8001" in message
    if step:
        assert f"step {step}" in message
    # What to do is said once: by the step where it knows, by the client otherwise.
    said_by_step = isinstance(error, _errors.InvalidInputError) and error.code
    assert message.endswith(error.detail if said_by_step else type(error).advice)


def test_what_may_be_sent_again():
    assert {name for name, kind in CLASSES.items() if kind.passing} == {
        "ServerUnreachableError",
        "ConnectionLostError",
        "ServerNotReadyError",
        "ServerBusyError",
        "StepCrashedError",
        "RequestCancelledError",
    }


def test_connection_texts_lose_their_preamble():
    text = "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:8001: refused"
    assert map_error("UNAVAILABLE", text, model=None, url="h:1").detail == "refused"


def test_a_port_that_hangs_up_is_described():
    """What Triton's HTTP port does to a gRPC client."""
    text = (
        "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8000: "
        "Socket closed"
    )
    error = map_error("UNAVAILABLE", text, model=None, url="127.0.0.1:8000")
    assert type(error) is _errors.ServerUnreachableError
    assert "not a gRPC port" in str(error)


def test_tritons_request_number_is_left_out():
    text = "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'pikfix'"
    error = map_error("INVALID_ARGUMENT", text, model="pikfix", url="h:1")
    assert str(error).startswith("pikfix at h:1: expected 2 inputs")


def test_a_long_text_stays_one_readable_line():
    error = map_error("INTERNAL", "x\n" * 5000, model="pikfix", url="h:1")
    assert len(str(error)) < 900
    assert "\n" not in str(error)


def test_status_table_is_read_only():
    with pytest.raises(TypeError):
        _mapping.STATUS_ERRORS["OK"] = _errors.ServerError


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_errors_survive_pickling(kind):
    error = kind("broken", model="pikfix", step="restore", code="internal", status="X", url="h:1")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_invalid_input_is_a_value_error_and_no_error_is_an_os_error():
    assert issubclass(_errors.InvalidInputError, ValueError)
    # A caller must be able to tell an unreadable file from a server's failure.
    assert not any(issubclass(kind, OSError) for kind in CLASSES.values())
