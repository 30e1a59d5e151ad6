"""The result: picture, report, file."""

from __future__ import annotations

import dataclasses
import json
import os
import stat

import numpy as np
import pytest
from fake_triton import report_of
from PIL import Image

from pikfix.client import (
    InvalidOptionsError,
    InvalidResponseError,
    PikFixClient,
    Report,
    RestoredPhoto,
)
from pikfix.photos import write_atomically
from pikfix.protocol.report import ReportError


@pytest.fixture
def restored(server, jpeg):
    with PikFixClient(server.url) as client:
        return client.restore(jpeg, jpeg, format="jpeg")


def test_picture_and_report(restored):
    assert restored.image.size == (64, 48)
    assert restored.image is restored.image
    assert restored.image.format == "JPEG"
    report = restored.report
    assert (report.photo.width, report.photo.height) == (64, 48)
    assert report.colorized is True
    assert report.references[0].source == "request"
    assert report.references[0].share == 1.0
    assert report.seconds.networks == 0.02
    assert report.model_version == "1"
    assert json.loads(json.dumps(report.to_dict()))["references"][0]["name"] is None


def test_save_writes_the_file_as_it_came(restored, tmp_path):
    path = restored.save(tmp_path / "out.jpg")
    assert path.read_bytes() == restored.data
    assert [one.name for one in tmp_path.iterdir()] == ["out.jpg"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_save_refuses_a_suffix_that_lies(restored, tmp_path):
    with pytest.raises(InvalidOptionsError, match="png"):
        restored.save(tmp_path / "out.png")
    restored.save(tmp_path / "out.JPEG")
    restored.save(tmp_path / "out.old")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.JPEG", "out.old"]


def test_save_into_a_missing_folder_says_so(restored, tmp_path):
    with pytest.raises(FileNotFoundError):
        restored.save(tmp_path / "no" / "out.jpg")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "out.jpg"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["out.jpg"]


def test_a_write_replaces_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "original").write_bytes(b"original")
    (tmp_path / "link").symlink_to(tmp_path / "original")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "original").read_bytes() == b"original"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_result_that_cannot_be_decoded_is_a_server_error(restored):
    broken = dataclasses.replace(restored, data=restored.data[:100])
    with pytest.raises(InvalidResponseError, match="decode"):
        _ = broken.image


def wanted_keys():
    return [
        ("photo",),
        ("photo", "width"),
        ("photo", "mode"),
        ("result", "height"),
        ("references",),
        ("colorized",),
        ("mean_confidence",),
        ("seconds", "networks"),
        ("model_version",),
        ("warnings",),
    ]


@pytest.mark.parametrize("path", wanted_keys(), ids=".".join)
def test_a_report_without_a_key_is_refused(fake, path):
    report = fake.report_of(3, 4, "png")
    place = report
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(ReportError, match=path[-1]):
        Report.from_json(json.dumps(report))


@pytest.mark.parametrize(
    "changes",
    [
        {"colorized": "yes"},
        {"references": 3},
        {"references": [{"name": "a"}]},
        {"mean_confidence": "high"},
        {"result": {"width": 1.5, "height": 2, "format": "png"}},
    ],
)
def test_a_report_with_a_wrong_type_is_refused(fake, changes):
    with pytest.raises(ReportError):
        Report.from_json(json.dumps(fake.report_of(3, 4, "png", **changes)))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", "null"])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ReportError):
        Report.from_json(text)


def test_keys_of_a_newer_server_are_left_out(fake):
    report = fake.report_of(3, 4, "png", novelty={"a": 1})
    assert "novelty" not in Report.from_json(json.dumps(report)).to_dict()


def test_results_are_values(restored):
    twin = RestoredPhoto(data=restored.data, report=restored.report)
    assert twin == restored
    assert len(repr(twin)) < 1000  # no picture in a log
    with pytest.raises(dataclasses.FrozenInstanceError):
        twin.data = b""


@pytest.mark.parametrize(
    "outputs",
    [
        {"result": b"x"},
        {"report": b"{}"},
        {"result": b"", "report": b"{}"},
        {"result": b"x", "report": b"{}"},
        {"result": np.zeros((1, 1), np.float32), "report": b"{}"},
        {"result": np.zeros((1, 2), np.float32), "report": b"{}"},
    ],
    ids=["no report", "no result", "empty result", "empty report", "a number", "two numbers"],
)
def test_an_answer_outside_the_contract_is_a_server_error(server, fake, jpeg, outputs):
    server.answer = lambda request, context: fake.response("pikfix_photo", **outputs)
    with PikFixClient(server.url) as client, pytest.raises(InvalidResponseError):
        client.restore(jpeg)


def test_a_garbled_message_is_a_server_error(server, fake, jpeg):
    def garbled(request, context):
        answer = fake.response("pikfix_photo", result=b"picture", report=b"{}")
        answer.raw_output_contents[0] = b"\xff\xff\xff\x00abc"
        return answer

    server.answer = garbled
    with PikFixClient(server.url) as client, pytest.raises(InvalidResponseError, match="result"):
        client.restore(jpeg)


def test_tensors_come_back_as_arrays_of_their_own(server):
    photo_l = np.linspace(-1, 1, 2 * 32 * 64, dtype=np.float32).reshape(2, 1, 32, 64)
    with PikFixClient(server.url) as client:
        restored_l, ab = client.infer(photo_l, np.zeros((2, 1, 3, 32, 32), np.float32))
    np.testing.assert_array_equal(restored_l, photo_l)
    assert ab.shape == (2, 2, 32, 64)
    restored_l += 1  # writable, not a view of the message


@pytest.mark.parametrize(
    ("restored_l", "ab"),
    [
        (np.zeros((1, 1, 32, 63), np.float32), np.zeros((1, 2, 32, 32), np.float32)),
        (np.zeros((1, 1, 32, 32), np.float64), np.zeros((1, 2, 32, 32), np.float32)),
        (np.zeros((1, 1, 32, 32), np.float32), np.zeros((1, 3, 32, 32), np.float32)),
        (np.full((1, 1, 32, 32), np.nan, np.float32), np.zeros((1, 2, 32, 32), np.float32)),
        (np.zeros((1, 1, 32, 32), np.float32), np.full((1, 2, 32, 32), np.inf, np.float32)),
    ],
)
def test_tensors_outside_the_contract_are_a_server_error(server, fake, restored_l, ab):
    server.answer = lambda request, context: fake.response("pikfix", restored_l=restored_l, ab=ab)
    with PikFixClient(server.url) as client, pytest.raises(InvalidResponseError, match="server's"):
        client.infer(np.zeros((1, 1, 32, 32), np.float32), np.zeros((1, 1, 3, 8, 8), np.float32))


def test_the_image_is_the_grey_photo(restored, jpeg):
    import io

    grey = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(int)
    assert np.abs(np.asarray(restored.image).astype(int) - grey).mean() < 2


def test_content_and_rectangle_of_a_picture_that_is_more_than_a_photo():
    before = Report.from_json(json.dumps(report_of(9, 8, "png")))
    assert (before.photo.content, before.photo.rectangle, before.restored) == ("photo", None, True)
    values = report_of(9, 8, "png")
    values["photo"] |= {"content": "photo", "rectangle": [1, 2, 7, 8]}
    bordered = Report.from_json(json.dumps(values))
    assert (bordered.photo.rectangle, bordered.restored) == ((1, 2, 7, 8), True)
    values["photo"] |= {"content": "graphic", "rectangle": None}
    assert not Report.from_json(json.dumps(values)).restored
    values["photo"]["rectangle"] = [1, 2, 3]
    with pytest.raises(ReportError, match="cannot read the report"):
        Report.from_json(json.dumps(values))
