"""Pictures for the page: previews, fainter colours, a photo once more, the library."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.color
from PIL import Image
from skimage import data

from pikfix.client import ServerUnreachableError
from pikfix.gateway.previews import _fainter, faded
from pikfix.photos import PhotoError, encode_photo
from pikfix.references.errors import LibraryError


def opened(answer):
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_a_preview_is_a_small_jpeg_of_the_photo_and_of_the_result(gateway):
    pixels = np.rint(np.linspace(0, 65535, 300 * 200)).astype(np.uint16).reshape(200, 300)
    photo, _ = encode_photo(pixels, "tiff")
    place = gateway.send(photo, name="scan.tif").headers["location"]
    small = opened(gateway.http.get(f"{place}/photo", params={"side": 60}))
    assert (small.format, small.size) == ("JPEG", (60, 40))
    # The middle of its row 20 is at 20.5 of 40, as far down the ramp.
    assert abs(np.asarray(small)[20, 30] - 255 * 20.5 / 40) <= 2
    assert opened(gateway.http.get(f"{place}/picture?side=16")).size == (16, 11)
    assert gateway.http.get(f"{place}/photo").content == photo
    for wrong in ("0", "15", "100000", "x"):
        answer = gateway.http.get(f"{place}/photo", params={"side": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_strangers_file_is_never_served_as_a_page(gateway):
    job = gateway.send(b"<html><script>alert(1)</script>", name="a.html", later=True).json()
    gateway.finish(job["id"])
    answer = gateway.http.get(job["links"]["photo"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    small = gateway.http.get(job["links"]["photo"] + "?side=64")
    assert (small.status_code, small.json()["code"]) == (422, "bad_photo")


def test_fainter_colours_mix_with_the_grey_of_the_same_luminance():
    rgb = data.astronaut()[:200, :200]
    light = skimage.color.rgb2lab(rgb)[..., 0]
    grey = faded(rgb, 0.0)
    assert (
        np.abs(skimage.color.rgb2lab(np.repeat(grey[..., None], 3, 2))[..., 0] - light).max() < 0.3
    )
    half = faded(rgb, 0.5)
    mixed = (rgb.astype(float) + grey[..., None]) / 2
    assert np.abs(half - mixed).max() <= 0.5
    assert np.abs(skimage.color.rgb2lab(half)[..., 0] - light).mean() < 0.5
    deep = faded(rgb.astype(np.float32) / 255, 0.5)
    assert deep.dtype == np.float32
    assert np.abs(deep * 255 - half).max() <= 1.0


def test_a_fainter_result_keeps_what_the_file_says(gateway, fake):
    fake.library = "harbour.jpg"
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "Harbour, 1931"
    Image.new("L", (64, 48), 55).save(buffer, "JPEG", exif=exif, dpi=(300, 300))
    job = gateway.finish(gateway.send(buffer.getvalue(), later=True).json()["id"])
    place = job["links"]["picture"]
    full = np.asarray(opened(gateway.http.get(place)))
    assert np.array_equal(full, np.asarray(opened(gateway.http.get(f"{place}?strength=1"))))
    half = opened(gateway.http.get(f"{place}?strength=0.5"))
    assert np.array_equal(np.asarray(half), faded(full, 0.5))
    answer = gateway.http.get(f"{place}?strength=0")
    assert opened(answer).mode == "L"
    assert "old-restored.png" in answer.headers["content-disposition"]
    for wrong in ("-0.1", "1.1", "x", "nan"):
        assert gateway.http.get(f"{place}?strength={wrong}").status_code == 400


def test_a_result_of_several_photos_loses_none_to_fainter_colours(tmp_path):
    pages = [Image.new("RGB", (64, 48), (200, n, 30)) for n in range(3)]
    pages[0].save(tmp_path / "result", "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(PhotoError, match="holds 3 photos"):
        _fainter(tmp_path / "result", "tiff", 0.5, 95)


def test_a_photo_is_restored_once_more_without_being_sent_again(gateway, fake, make_png):
    first = gateway.send(make_png(33), later=True).json()
    gateway.finish(first["id"])
    form = {"again": (None, first["id"]), "options": (None, '{"format": "jpeg"}')}
    answer = gateway.http.post("/v1/restorations", files=form)
    assert answer.headers["content-type"] == "image/jpeg"
    assert fake.calls[1] == (make_png(33), [], {"format": "jpeg"})
    gateway.http.delete(first["links"]["self"])
    second = answer.headers["location"]
    assert gateway.http.get(f"{second}/photo").content == make_png(33), "it has its own"
    gone = gateway.http.post("/v1/restorations", files=form)
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Three pictures that a seeded backbone compares: (library, pictures)."""
    import torch

    from pikfix.references.builder import build_library
    from pikfix.systems.checkpoint import save_checkpoint
    from pikfix.systems.pikfix.networks import PRESETS, PikFix

    root = tmp_path_factory.mktemp("library")
    (root / "pictures" / "deeper").mkdir(parents=True)
    for name, picture in (("coffee", data.coffee()), ("deeper/cat", data.chelsea())):
        Image.fromarray(picture[:150, 150:300]).save(root / "pictures" / f"{name}.png")
    torch.manual_seed(3)
    import dataclasses

    tiny = dataclasses.replace(
        PRESETS["compact"], name="tiny", backbone_blocks=(1, 1, 1, 1), backbone_width=8
    )
    save_checkpoint(PikFix(tiny), root / "seeded.safetensors")
    build_library(root / "pictures", root / "built", backbone=root / "seeded.safetensors")
    return root / "built", root / "pictures"


def test_the_library_is_ranked_shown_and_taken_by_name(start, fake, library, tmp_path):
    folder, pictures = library
    gateway = start(library=folder)
    assert gateway.http.get("/service").json()["library"] is True
    buffer = io.BytesIO()
    Image.fromarray(data.coffee()[100:250, 100:250]).convert("L").save(buffer, "PNG")
    job = gateway.finish(gateway.send(buffer.getvalue(), later=True).json()["id"])
    ranked = gateway.http.get(job["links"]["self"] + "/references", timeout=120).json()
    assert {one["name"] for one in ranked} == {"coffee.png", "deeper/cat.png"}
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert set(ranked[0]) == {"name", "score", "suits", "taken"}
    thumbnail = gateway.http.get("/v1/library/thumbnail", params={"name": "deeper/cat.png"})
    assert max(opened(thumbnail).size) == 150
    form = {"again": (None, job["id"]), "library": (None, "deeper/cat.png")}
    answer = gateway.http.post("/v1/restorations", files=form)
    assert fake.calls[-1][1] == [(pictures / "deeper" / "cat.png").read_bytes()]
    (use,) = gateway.http.get(answer.headers["location"]).json()["report"]["references"]
    assert (use["source"], use["name"]) == ("library", "deeper/cat.png")


@pytest.mark.parametrize("name", ["../seeded.safetensors", "/etc/passwd", "", "deeper"])
def test_a_name_of_the_library_is_no_path(start, fake, library, name):
    gateway = start(library=library[0])
    answer = gateway.http.get("/v1/library/thumbnail", params={"name": name})
    assert (answer.status_code, answer.json()["code"]) == (404, "no_reference")
    answer = gateway.send(data={"library": name})
    assert (answer.status_code, fake.calls) == (404, [])


def test_without_a_library_there_is_none_to_ask(gateway):
    answer = gateway.send(data={"library": "coffee.png"})
    assert (answer.status_code, answer.json()["code"]) == (404, "no_library")
    place = gateway.send().headers["location"]
    assert gateway.http.get(f"{place}/references").json()["code"] == "no_library"
    assert gateway.http.get("/service").json()["library"] is False


def test_a_library_that_cannot_be_used_is_named_before_anything_starts(start, tmp_path):
    with pytest.raises(LibraryError):
        start(library=tmp_path)


def test_what_came_with_a_photo_is_kept_where_that_is_asked_for(gateway, fake, make_png):
    photo, mask, new = make_png(1), make_png(2), make_png(6)
    references = [make_png(3), make_png(4)]
    files = [("photo", ("a.png", photo)), ("mask", ("m.png", mask))]
    files += [("reference", ("r.png", one)) for one in references]
    http = gateway.http
    later = {"Prefer": "respond-async"}
    first = gateway.finish(http.post("/v1/restorations", files=files, headers=later).json()["id"])
    assert first["mask"] is True
    assert http.get(first["links"]["mask"]).content == mask

    def again(keep, *more):
        form = [("again", (None, first["id"])), *[("keep", (None, one)) for one in keep], *more]
        return http.post("/v1/restorations", files=form, headers=later)

    ends = [gateway.finish(again(keep).json()["id"]) for keep in ((), ("mask",), ("references",))]
    assert [one["mask"] for one in ends] == [False, True, False]
    assert [one["references"] for one in ends] == [0, 0, 2]
    everything = ("references", "mask")
    more = [("mask", ("n.png", new)), ("reference", ("q.png", make_png(5)))]
    gateway.finish(again(everything, *more).json()["id"])
    assert fake.calls == [
        (photo, references, {"mask": mask}),
        (photo, [], {}),
        (photo, [], {"mask": mask}),
        (photo, references, {}),
        (photo, [*references, make_png(5)], {"mask": new}),
    ]
    # What was taken from a restoration outlives it.
    gateway.http.delete(first["links"]["self"])
    assert http.get(f"/v1/restorations/{ends[1]['id']}/mask").content == mask
    assert http.get(f"/v1/restorations/{ends[2]['id']}/mask").status_code == 404


def test_what_cannot_be_kept_is_told(gateway, fake, make_png):
    files = [("photo", ("a.png", make_png(1)))]
    files += [("reference", ("r.png", make_png(2))) for _ in range(gateway.settings.references)]
    post = gateway.http.post
    later = {"Prefer": "respond-async"}
    job = gateway.finish(post("/v1/restorations", files=files, headers=later).json()["id"])
    again = [("again", (None, job["id"]))]
    for form, said in (
        ([*files, ("keep", (None, "mask"))], "keep is of an earlier restoration"),
        ([*again, ("keep", (None, "photo"))], "keep must be one of references, mask"),
        ([*again, ("keep", (None, "references")), files[1]], "send at most 8 references, got 9"),
    ):
        answer = post("/v1/restorations", files=form, headers=later)
        assert (answer.status_code, said in answer.json()["detail"]) == (400, True), answer.text


def test_the_systems_are_those_that_are_ready(gateway, fake, latent):
    def systems():
        return gateway.http.get("/service").json()["systems"]

    assert systems() == ["pikfix"]
    latent()
    assert systems() == ["pikfix", "latent", "latent+pikfix"]

    async def fails(_system):
        raise ServerUnreachableError("nobody listens", url="127.0.0.1:1")

    fake.is_ready = fails
    assert systems() == []


def test_the_server_is_asked_for_its_systems_once_in_a_while(gateway, fake, monkeypatch):
    monkeypatch.setattr("pikfix.gateway.health.SYSTEMS_FRESH_S", 60)
    asked = []

    async def is_ready(system):
        asked.append(system)
        return system == "pikfix"

    fake.is_ready = is_ready
    answers = [gateway.http.get("/service").json()["systems"] for _ in range(5)]
    assert answers == [["pikfix"]] * 5
    assert sorted(asked) == ["latent", "latent+pikfix", "pikfix"]
