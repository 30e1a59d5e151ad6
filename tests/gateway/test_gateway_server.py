"""The whole way once: HTTP, the gateway, a private tritonserver, the networks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from skimage import data

from pikfix.client import PikFixClient
from pikfix.serving.server import start_server

pytestmark = pytest.mark.serving

PIKFIX = Path(sys.executable).with_name("pikfix")


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PHOTO = jpeg(data.camera()[100:228, 100:260])
REFERENCE = jpeg(data.coffee()[100:228, 100:260])
MASK = jpeg(np.pad(np.full((10, 40), 255, np.uint8), ((20, 34), (20, 20))))


@pytest.fixture
def web(tmp_path):
    """Start ``pikfix web``, answer a client of it, and see that it ends in order."""
    words = [PIKFIX, "web", "--port", "0", "--store", tmp_path / "jobs"]
    running = []

    def begin(*more):
        running.append(subprocess.Popen([*words, *more], stdout=subprocess.PIPE, text=True))
        address = running[-1].stdout.readline().split()[2]
        return httpx.Client(base_url=address, timeout=120, trust_env=False)

    yield begin
    for process in running:
        process.terminate()
        assert process.wait(timeout=30) == 0
        process.stdout.close()


def test_a_photo_comes_back_as_the_client_gets_it(exported, web):
    repository, _ = exported
    with start_server(repository, supervise=False) as server:
        http = web("--url", server.grpc_url)
        files = [("photo", ("old.jpg", PHOTO)), ("reference", ("colour.jpg", REFERENCE))]
        answer = http.post("/v1/restorations", files=files)
        assert answer.status_code == 200, answer.text
        with PikFixClient(server.grpc_url) as client:
            expected = client.restore(PHOTO, REFERENCE)
        assert answer.content == expected.data
        report = http.get(answer.headers["location"]).json()["report"]
        assert report["colorized"] is True
        (use,) = report["references"]
        assert use["share"] == pytest.approx(expected.report.references[0].share)
        assert http.get("/healthz").json() == {"server": "healthy"}
        assert http.get("/service").json()["systems"] == ["pikfix"]
        number = answer.headers["location"].rpartition("/")[2]
        form = [("again", (None, number)), ("keep", (None, "references"))]
        answer = http.post("/v1/restorations", files=[*form, ("mask", ("m.png", MASK))])
        with PikFixClient(server.grpc_url) as client:
            marked = client.restore(PHOTO, REFERENCE, mask=MASK)
        assert answer.content == marked.data != expected.data
        answer = http.post("/v1/restorations", files={"photo": ("a.jpg", b"no picture")})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_photo")
        assert answer.json()["step"] == "decode_photo"
        answer = http.post("/v1/restorations", files={"photo": ("a.jpg", bytes(10000))})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_photo")


def test_without_a_server_a_private_one_is_started(exported, web):
    repository, _ = exported
    http = web("--model-repository", repository)
    answer = http.post(
        "/v1/restorations",
        files={"photo": ("old.jpg", PHOTO)},
        data={"options": '{"color": false, "format": "png"}'},
    )
    assert answer.status_code == 200, answer.text
    assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == (128, 160)
