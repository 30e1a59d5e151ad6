"""The first step on a real server with a library: no networks are needed to see its choice."""

import json
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc

from pikfix.cli.references import COUNT_VARIABLE, LIBRARY_VARIABLE, serve_from
from pikfix.references.library import CANDIDATES, Library, suitable
from pikfix.references.pictures import reduce_picture
from pikfix.serving.server import start_server

pytestmark = pytest.mark.serving

STEP = Path(__file__).parents[2] / "model_repository" / "decode_photo"
NAME = "first_step"


def text(data):
    tensor = np.empty((1, 1), dtype=object)
    tensor[0, 0] = data
    return tensor


def ask(server, photo, options=b"", reference=b""):
    inputs = []
    for name, data in (("photo", photo), ("options", options), ("reference", reference)):
        if data:
            one = grpc.InferInput(name, [1, 1], "BYTES")
            one.set_data_from_numpy(text(data))
            inputs.append(one)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        # As Pik-Fix's ensemble asks: with photo_rgb among the outputs there would be no references.
        outputs = [grpc.InferRequestedOutput(one) for one in ("reference_lab", "photo_info")]
        answer = client.infer(NAME, inputs, outputs=outputs)
    notes = json.loads(answer.as_numpy("photo_info")[0, 0])
    return answer.as_numpy("reference_lab"), notes


@pytest.fixture
def grey(samples):
    return np.asarray(Image.fromarray(samples["coffee_1.png"]).convert("L"))


@pytest.fixture
def threshold(library, grey):
    """What only the three best reach."""
    return Library(library).rank(reduce_picture(grey), 3)[2].score - 1e-3


@pytest.fixture
def expected(library, grey, threshold):
    ranked = Library(library).rank(reduce_picture(grey), CANDIDATES)
    return suitable(ranked, threshold)


@pytest.fixture
def server(library, tmp_path, monkeypatch, threshold):
    manifest = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps({**manifest, "threshold": threshold}))
    # Under another name: a repository with the step's own must hold the networks too.
    folder = Path(shutil.copytree(STEP, tmp_path / "models" / NAME))
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace('name: "decode_photo"', f'name: "{NAME}"'))
    monkeypatch.setenv(LIBRARY_VARIABLE, "")
    monkeypatch.setenv(COUNT_VARIABLE, "")
    serve_from(library, 3)
    with start_server(tmp_path / "models", supervise=False) as running:
        yield running


def test_the_step_chooses_where_no_reference_is_sent(
    server, samples, save, library, grey, expected, threshold
):
    photo = save(Image.fromarray(grey))
    planes, notes = ask(server, photo)
    assert planes.shape == (1, 3, 3, 160, 160)
    assert np.abs(planes[:, :, 1:]).max() > 0.1
    assert notes["colorize"]
    assert [(one["source"], one["name"]) for one in notes["references"]] == [
        ("library", match.name) for match in expected
    ]
    for one, match in zip(notes["references"], expected, strict=True):
        assert one["score"] == pytest.approx(match.score, abs=1e-3)

    _, sent = ask(server, photo, reference=save(Image.fromarray(samples["rocket_0.png"])))
    assert [one["source"] for one in sent["references"]] == ["request"]

    blank = np.full((40, 40), 90, np.uint8)
    best = Library(library).rank(reduce_picture(blank), 1)[0].score
    assert best < threshold
    planes, refused = ask(server, save(Image.fromarray(blank)))
    assert not refused["colorize"]
    assert "none that suits" in refused["warnings"][0]
    assert not planes.any()
    _, forced = ask(server, save(Image.fromarray(blank)), options=b'{"force_color": true}')
    assert forced["colorize"]
    # As many of the three asked for as come near the best.
    taken = len(forced["references"])
    assert 1 <= taken <= 3

    ask(server, photo)
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    counted = {
        result: float(next(line for line in lines if f'result="{result}"' in line).split()[-1])
        for result in ("hit", "miss")
        if any(f'result="{result}"' in line for line in lines)
    }
    # Each instance of the step has a cache of its own, so that the second photo may miss too.
    assert counted["miss"] >= 3
    assert sum(counted.values()) == 3 + taken + 3
