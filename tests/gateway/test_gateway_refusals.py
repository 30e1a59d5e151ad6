"""Everything that a stranger can send, with the status and the sentence that it gets."""

from __future__ import annotations

import logging
import socket
import time

import pytest

from pikfix.gateway.tokens import Tokens, TokensError

HEAD = (
    "POST /v1/restorations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\n"
)
PART = '--x\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'


def talk(gateway, *pieces, pause=0.0):
    """Send bytes as they are and return what comes back until the connection closes."""
    with socket.create_connection(gateway.address, timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece if isinstance(piece, bytes) else piece.encode())
            time.sleep(pause)
        answer = b""
        while part := connection.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer and b"}" in answer:
                break
    return answer.decode()


@pytest.mark.parametrize(
    ("send", "status", "code", "said"),
    [
        ({"content": b"x"}, 415, "bad_request", "multipart/form-data"),
        ({"files": [("reference", ("r.png", b"x"))]}, 400, "bad_request", "one file as photo"),
        ({"files": [("photo", ("a", b"x"))] * 2}, 400, "bad_request", "one file as photo, got 2"),
        ({"files": [("photo", ("a", b""))]}, 422, "bad_photo", "the photo is empty"),
        (
            {"files": [("photo", ("a", b"x")), ("reference", ("b", b""))]},
            422,
            "bad_reference",
            "a reference is empty",
        ),
        (
            {"files": [("photo", ("a", b"x"))] + [("reference", ("b", b"y"))] * 3},
            400,
            "bad_request",
            "send at most 2 references, got 3",
        ),
        (
            {"files": [("photo", ("a", b"x"))] + [("reference", ("b", b"y"))] * 4},
            400,
            "bad_request",
            "Too many files",
        ),
        (
            {"files": [("photo", ("a", b"x"))], "data": {"mask": "1"}},
            400,
            "bad_request",
            "mask must be a file",
        ),
        (
            {"files": [("photo", ("a", b"x"))], "data": {"masks": "1"}},
            400,
            "bad_request",
            "there is no field 'masks'",
        ),
        ({"files": [("options", ("a", b"{}"))]}, 400, "bad_request", "options must be text"),
        ({"files": [("x", ("a", b"x"))], "data": {"photo": "a.png"}}, 400, "bad_request", "field"),
        (
            {"files": [("photo", ("a", b"x"))], "data": {"options": "1" * 70000}},
            400,
            "bad_request",
            "the form cannot be read",
        ),
        (
            {"files": [("photo", ("a", b"x"))], "headers": {"Idempotency-Key": "k" * 300}},
            400,
            "bad_request",
            "Idempotency-Key",
        ),
        (
            {"files": [("photo", ("a", b"x"))], "headers": {"Origin": "https://evil.example"}},
            403,
            "foreign_origin",
            "--origin",
        ),
        ({"files": [("photo", ("a", b"x" * 200000))]}, 413, "upload_too_large", "MiB"),
    ],
)
def test_a_request_that_cannot_be_used(start, fake, send, status, code, said):
    gateway = start(references=2, upload_bytes=100_000)
    answer = gateway.http.post("/v1/restorations", **send)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in problem["detail"]
    assert "\n" not in problem["detail"]
    assert (gateway.kept(), fake.calls) == ([], [])
    assert gateway.send().status_code == 200, "and the next one is served"


def test_an_upload_is_refused_by_its_length_before_it_is_sent(start):
    gateway = start(upload_bytes=1000)
    answer = talk(gateway, HEAD, "Content-Length: 900000000\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith("HTTP/1.1 413 "), answer


def test_an_upload_without_a_length_is_cut_off_at_the_limit(start):
    gateway = start(upload_bytes=100_000)
    chunk = f"{0x8000:x}\r\n".encode() + b"x" * 0x8000 + b"\r\n"
    body = PART.encode()
    first = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    pieces = [first, *[chunk] * 8, b"0\r\n\r\n"]
    answer = talk(gateway, HEAD, "Transfer-Encoding: chunked\r\n\r\n", *pieces)
    assert answer.startswith("HTTP/1.1 413 "), answer
    assert gateway.kept() == []


def test_an_upload_that_stops_is_given_up(start):
    gateway = start(idle_seconds=0.3)
    answer = talk(gateway, HEAD, "Content-Length: 5000\r\n\r\n", PART)
    assert answer.startswith("HTTP/1.1 408 "), answer
    assert "upload_too_slow" in answer
    assert gateway.kept() == []


def test_an_upload_that_trickles_is_given_up(start):
    gateway = start(upload_seconds=0.5, idle_seconds=5)
    try:
        answer = talk(gateway, HEAD, "Content-Length: 5000\r\n\r\n", PART, *["x"] * 12, pause=0.08)
    except ConnectionError:
        answer = "HTTP/1.1 408 "  # closed while it was still sending
    assert answer.startswith("HTTP/1.1 408 "), answer


def test_who_hangs_up_in_mid_upload_leaves_nothing(start, until):
    gateway = start(queue=1)
    with socket.create_connection(gateway.address) as connection:
        connection.sendall((HEAD + "Content-Length: 500000\r\n\r\n" + PART).encode())
        until(lambda: gateway.send().status_code == 429)
    until(lambda: gateway.send(later=True).status_code == 202)


def test_who_hangs_up_before_the_answer_has_his_photo_deleted(gateway, fake, until, make_png):
    fake.gate.clear()
    body = PART.encode() + make_png() + b"\r\n--x--\r\n"
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: fake.now == 1)
    until(lambda: fake.cancelled == 1)
    until(lambda: gateway.kept() == [])


@pytest.mark.parametrize("name", ["../../../outside", "/etc/passwd", "a/../../outside", "lock"])
def test_a_file_name_is_no_path(gateway, tmp_path, name):
    answer = gateway.send(name=name)
    assert answer.status_code == 200
    state = gateway.http.get(answer.headers["location"]).json()
    assert state["photo"]["name"] == name.rpartition("/")[2]
    assert [one.name for one in tmp_path.iterdir()] == ["jobs"]
    (number,) = gateway.kept()
    assert number == state["id"]


@pytest.mark.parametrize(
    "path", ["..%2f..%2flock", "%2e%2e", "0" * 32, "incoming-x", "a" * 5000, "%00", "lock/picture"]
)
def test_a_number_is_no_path(gateway, path):
    answer = gateway.http.get(f"/v1/restorations/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_another_name_that_leads_here_is_not_answered(start):
    """A page of that name could read everything otherwise (DNS rebinding)."""
    gateway = start(hosts=("localhost", "127.0.0.1"))
    for path in ("/healthz", "/v1/restorations/0"):
        answer = gateway.http.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["code"]) == (421, "wrong_host")
    assert gateway.http.get("/healthz", headers={"Host": "localhost:1"}).status_code == 200


def test_cors_is_off_unless_a_site_is_named(start):
    asking = {"Origin": "https://album.example", "Access-Control-Request-Method": "POST"}
    closed = start()
    answer = closed.http.options("/v1/restorations", headers=asking)
    assert not any(name.startswith("access-control") for name in answer.headers)
    closed.stop()
    opened = start(origins=("https://album.example",))
    answer = opened.http.options("/v1/restorations", headers=asking)
    assert answer.headers["access-control-allow-origin"] == "https://album.example"
    answer = opened.send(headers={"Origin": "https://album.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://album.example"


FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who may come in\nanna {FIRST}\n\nbernd {SECOND}\n")
    return path


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_without_a_token_nothing_is_read(start, tokens, fake):
    gateway = start(tokens=tokens)
    for headers in ({}, bearer("wrong"), bearer(FIRST[:-1]), {"Authorization": f"Basic {FIRST}"}):
        answer = gateway.send(headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "wrong_token")
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = talk(gateway, HEAD, "Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith("HTTP/1.1 401 "), answer
    assert gateway.http.get("/healthz").status_code == 200
    assert fake.calls == []


def test_a_token_sees_its_own_restorations_alone(start, tokens):
    gateway = start(tokens=tokens)
    key = {"Idempotency-Key": "same"}
    place = gateway.send(later=True, headers=bearer(FIRST) | key).json()["links"]["self"]
    for path in (place, f"{place}/picture", f"{place}/events"):
        assert gateway.http.get(path, headers=bearer(SECOND)).status_code == 404
    assert gateway.http.delete(place, headers=bearer(SECOND)).status_code == 404
    other = gateway.send(later=True, headers=bearer(SECOND) | key).json()["links"]["self"]
    assert other != place
    assert gateway.http.get(place, headers=bearer(FIRST)).status_code == 200


def test_a_token_that_is_taken_out_no_longer_lets_in(start, tokens):
    gateway = start(tokens=tokens)
    assert gateway.send(headers=bearer(FIRST)).status_code == 200
    tokens.write_text(f"bernd {SECOND}\n")
    assert gateway.send(headers=bearer(FIRST)).status_code == 401
    assert gateway.send(headers=bearer(SECOND)).status_code == 200
    tokens.unlink()
    assert gateway.send(headers=bearer(SECOND)).status_code == 401


@pytest.mark.parametrize("text", ["", "# nobody\n", "anna\n", "anna short\n", "a b c\n"])
def test_a_file_of_tokens_that_cannot_be_used_is_named(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(TokensError, match="NAME TOKEN"):
        Tokens(tmp_path / "tokens")


def test_logs_hold_no_name_and_no_picture(gateway, caplog, make_png):
    caplog.set_level(logging.DEBUG)
    gateway.send(make_png(), name="Grandmother.png")
    gateway.send(b"no picture of hers", name="Grandmother.png")
    ours = ("pikfix", "uvicorn", "fastapi", "starlette", "python_multipart", "asyncio")
    lines = [one.getMessage() for one in caplog.records if one.name.startswith(ours)]
    text = "\n".join(lines)
    assert "restoration" in text
    for word in ("Grandmother", "no picture of hers", "PNG", "IHDR"):
        assert word not in text
