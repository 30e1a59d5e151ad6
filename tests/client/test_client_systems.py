"""One call for several systems: which model is asked, and with what."""

import io
import json

import numpy as np
import pytest
from fake_triton import inputs_of, report_of, response
from PIL import Image

from pikfix.client import InvalidOptionsError, ModelNotFoundError


def picture(level, mode="RGB", name="JPEG"):
    file = io.BytesIO()
    Image.new(mode, (24, 16), level).save(file, name)
    return file.getvalue()


@pytest.fixture
def both(server):
    """A server with both systems; latent answers a green picture, pikfix a blue one."""
    server.models["latent_photo"] = "READY"

    def answer(request, context):
        inputs = inputs_of(request)
        options = json.loads(inputs["options"].flat[0])
        image = Image.open(io.BytesIO(inputs["photo"].flat[0]))
        latent = request.model_name == "latent_photo"
        format = options.get("format") or image.format.lower()
        report = report_of(24, 16, format, colorized=not latent)
        report["photo"]["format"] = image.format.lower()
        report |= {"system": request.model_name.removesuffix("_photo")}
        report |= {"damaged_share": 0.25, "faces": 2} if latent else {}
        report["warnings"] = [request.model_name]
        result = picture("green" if latent else "blue", name=format.upper())
        return response(request.model_name, result=result, report=json.dumps(report).encode())

    server.answer = answer
    return server


def test_a_photo_goes_to_the_system_that_is_named(kind, both):
    mask = np.zeros((16, 24), np.uint8)
    with kind(both.url) as client:
        restored = client.restore(picture("red"), system="latent", mask=mask, strength=0.5)
        client.restore(picture("red"))
    assert [request.model_name for request in both.requests] == ["latent_photo", "pikfix_photo"]
    sent = inputs_of(both.requests[0])
    assert json.loads(sent["options"].flat[0])["strength"] == 0.5
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent["mask"].flat[0]))), mask)
    report = restored.report
    assert (report.system, report.faces, report.damaged_share) == ("latent", 2, 0.25)


def test_a_chain_hands_on_what_the_first_answers_and_restores_once(kind, both):
    with kind(both.url) as client:
        restored = client.restore(
            picture("red"),
            picture("yellow"),
            system="latent+pikfix",
            strength=0.5,
            color_strength=0.7,
            quality=80,
        )
    first, second = (inputs_of(request) for request in both.requests)
    assert [request.model_name for request in both.requests] == ["latent_photo", "pikfix_photo"]
    assert "reference" not in first
    early, late = (json.loads(one["options"].flat[0]) for one in (first, second))
    assert (early["format"], early["strength"], "color_strength" in early) == ("png", 0.5, False)
    # What is handed on is what came, without loss; the result has the photo's own format.
    handed = Image.open(io.BytesIO(second["photo"].flat[0]))
    assert (handed.format, handed.getpixel((3, 3))) == ("PNG", (0, 128, 0))
    assert second["reference"].flat[0] == picture("yellow")
    assert (late["format"], late["strength"], late["color_strength"]) == ("jpeg", 0.0, 0.7)
    report = restored.report
    assert (report.system, report.colorized, report.model_version) == ("latent+pikfix", True, "1+1")
    assert (report.damaged_share, report.faces, report.photo.format) == (0.25, 2, "jpeg")
    assert report.warnings == ("latent_photo", "pikfix_photo")
    assert report.seconds.networks == pytest.approx(0.04)


def test_what_a_system_cannot_do_is_said_before_anything_is_sent(kind, both):
    with kind(both.url) as client:
        for arguments, words in (
            ({"system": "other"}, "must be one of pikfix, latent, latent.pikfix, got 'other'"),
            ({"system": "pikfix+latent"}, "system must be one of"),
            ({"system": "latent", "reference": picture("red")}, "takes no reference"),
        ):
            with pytest.raises(InvalidOptionsError, match=words):
                client.restore(picture("red"), **arguments)
    assert both.requests == []


def test_a_server_without_the_system_is_told_in_one_line(kind, server):
    with kind(server.url) as client:
        client.ensure_ready()
        assert not client.is_ready("latent")
        with pytest.raises(ModelNotFoundError) as found:
            client.ensure_ready("latent+pikfix")
        with pytest.raises(ModelNotFoundError, match="latent_photo"):
            client.restore(picture("red"), system="latent")
    message = str(found.value)
    assert message.startswith(f"latent_photo at {server.url}: the server has no such model (its ")
    assert "systems: pikfix)" in message
    assert "\n" not in message
