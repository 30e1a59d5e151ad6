"""encode_photo on its own, and behind decode_photo with networks that change nothing."""

import hashlib
import io
import json
import time
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from skimage import color as sk
from skimage import data

from pikfix.photos import lab_planes, provenance

BOUND = 0.3  # of L, see pikfix.photos.color.compose


@pytest.fixture
def steps(load, tmp_path):
    return load("decode_photo"), load("encode_photo", repository=tmp_path)


@pytest.fixture(scope="module")
def reference():
    return np.ascontiguousarray(data.coffee()[:200, :300])


def perfect_networks(decoded, photos):
    """Networks that restore nothing and know the true colours at the photo's own resolution."""
    light = decoded["photo_l"]
    ab = np.zeros((len(light), 2, *light.shape[2:]), np.float32)
    for number, photo in enumerate(photos):
        ab[number, :, : photo.shape[0], : photo.shape[1]] = lab_planes(photo)[1:]
    return {"restored_l": light, "ab": ab, "photo_info": decoded["photo_info"]}


def confidences(request, value=0.5):
    height, width = request["restored_l"].shape[2:]
    batch = len(request["restored_l"])
    return {
        f"confidence_{i}": np.full((batch, 1, height >> i + 1, width >> i + 1), value, np.float32)
        for i in range(1, 5)
    }


def opened(answer, number=0):
    image = Image.open(io.BytesIO(answer["result"][number, 0]))
    image.load()
    return image, json.loads(answer["report"][number, 0])


def refusal(answer, code, kind="INVALID_ARG"):
    message = answer.message()
    assert message.startswith(f"[encode_photo] {code}: ")
    assert "\n" not in message
    assert answer.code().name == kind
    return message


def through(steps, text, file, reference_file=b"", *, options=b"", ab=None):
    decode, encode = steps
    (decoded,) = decode.run(
        {"photo": text([file]), "reference": text([reference_file]), "options": text([options])}
    )
    light = decoded["photo_l"]
    ab = np.zeros((1, 2, *light.shape[2:]), np.float32) if ab is None else ab
    (answer,) = encode.run({"restored_l": light, "ab": ab, "photo_info": decoded["photo_info"]})
    return opened(answer)


def test_report(steps, text, save, reference):
    photo = np.ascontiguousarray(data.astronaut()[:90, :120])
    decode, encode = steps
    (decoded,) = decode.run({"photo": text([save(photo)]), "reference": text([save(reference)])})
    request = perfect_networks(decoded, [photo])
    time.sleep(0.02)
    (answer,) = encode.run({**request, **confidences(request)})
    assert answer["result"].shape == answer["report"].shape == (1, 1)
    image, report = opened(answer)
    seconds = report.pop("seconds")
    assert report == {
        "photo": {
            "width": 120,
            "height": 90,
            "format": "png",
            "mode": "RGB",
            "bit_depth": 8,
            "content": "photo",
            "rectangle": None,
        },
        "result": {"width": 120, "height": 90, "format": "png"},
        "references": [
            {
                "source": "request",
                "name": None,
                "score": None,
                "share": None,
                "sha256": hashlib.sha256(save(reference)).hexdigest(),
            }
        ],
        "colorized": True,
        "mean_confidence": 0.5,
        "damaged_share": None,
        "model_version": "unknown",
        "model_sha256": None,
        "digital_source_type": provenance.COMPOSITE,
        "kept_colors": False,
        "system": "pikfix",
        "faces": None,
        "warnings": ["the photo's own colours were not used: only its luminance is restored"],
    }
    assert list(seconds) == ["decode_photo", "networks", "encode_photo"]
    assert seconds["networks"] >= 0.02
    assert all(0 <= value < 5 for value in seconds.values())
    # Perfect networks give the photo itself.
    np.testing.assert_array_equal(np.asarray(image), photo)


def test_shares_of_a_repeated_set_are_added_up(steps, text, save, reference):
    decode, encode = steps
    file = save(data.astronaut()[:64, :64])
    (decoded,) = decode.run(
        {"photo": text([file]), "reference": np.array([[save(reference)] * 2], dtype=object)}
    )
    request = perfect_networks(decoded, [data.astronaut()[:64, :64]])
    shares = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    (answer,) = encode.run({**request, "reference_share": shares})
    references = opened(answer)[1]["references"]
    assert [entry["share"] for entry in references] == [0.4, 0.6]


@pytest.mark.parametrize("size", [(33, 517), (1, 1), (1, 40), (480, 640), (1200, 1600)])
def test_results_have_the_photos_own_size(steps, text, save, reference, size):
    tiles = np.tile(data.astronaut(), (3, 4, 1))
    photo = np.ascontiguousarray(tiles[: size[0], : size[1]])
    for reference_file in (save(reference), b""):
        image, report = through(steps, text, save(photo, "JPEG"), reference_file)
        assert image.size == (size[1], size[0])
        assert image.format == "JPEG"
        assert image.mode == ("RGB" if reference_file else "L")
        assert report["colorized"] is bool(reference_file)
        assert (report["result"]["height"], report["result"]["width"]) == size


def test_six_megapixels_need_little_memory(steps, text, save, reference):
    photo = np.tile(data.camera(), (4, 6))[:2000, :3000]
    ab = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 2, 352, 512)).astype(np.float32)
    decode, encode = steps
    (decoded,) = decode.run(
        {"photo": text([save(photo, "JPEG")]), "reference": text([save(reference)])}
    )
    assert decoded["photo_l"].shape == (1, 1, 2048, 3072)
    request = {"restored_l": decoded["photo_l"], "ab": ab, "photo_info": decoded["photo_info"]}
    tracemalloc.start()
    (answer,) = encode.run(request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    image, _ = opened(answer)
    assert image.size == (3000, 2000)
    # The 18 MB of the result itself, twice, and chunks.
    assert peak < 60e6


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_color_does_not_change_luminance(steps, text, save, reference, strength):
    photo = np.ascontiguousarray(data.camera()[::2, ::2])
    ab = np.random.default_rng(0).uniform(-strength, strength, (1, 2, 64, 64)).astype(np.float32)
    image, _ = through(steps, text, save(photo), save(reference), ab=ab)
    light = sk.rgb2lab(np.asarray(image))[..., 0]
    expected = sk.rgb2lab(np.repeat(photo[..., None], 3, axis=-1))[..., 0]
    assert np.abs(light - expected).max() <= BOUND
    assert np.asarray(image).std(axis=-1).mean() > 5, "there is colour"


def test_jpeg_adds_only_its_own_loss(steps, text, save, reference):
    photo = np.ascontiguousarray(data.camera()[::2, ::2])
    ab = np.random.default_rng(0).uniform(-0.2, 0.2, (1, 2, 8, 8)).astype(np.float32)
    image, _ = through(
        steps, text, save(photo), save(reference), options=b'{"format": "jpeg"}', ab=ab
    )
    light = sk.rgb2lab(np.asarray(image))[..., 0]
    expected = sk.rgb2lab(np.repeat(photo[..., None], 3, axis=-1))[..., 0]
    assert np.abs(light - expected).mean() < 1.0


@pytest.mark.parametrize("options", [b'{"color": false}', b""])
def test_left_grey_returns_the_tones_exactly(steps, text, save, options):
    photo = np.ascontiguousarray(data.camera()[:77, :91])
    image, report = through(steps, text, save(photo), options=options)
    np.testing.assert_array_equal(np.asarray(image), photo)
    assert image.mode == "L"
    assert report["colorized"] is False
    assert report["mean_confidence"] is None
    assert bool(report["warnings"]) is (options == b"")


def test_no_color_of_a_color_photo_is_its_luminance(steps, text, save):
    photo = np.ascontiguousarray(data.astronaut()[:77, :91])
    image, _ = through(steps, text, save(photo), options=b'{"color": false}')
    shown = sk.rgb2lab(np.repeat(np.asarray(image)[..., None], 3, axis=-1))[..., 0]
    assert np.abs(shown - sk.rgb2lab(photo)[..., 0]).max() <= BOUND


@pytest.mark.parametrize("name", ["TIFF", "PNG"])
def test_sixteen_bits_in_and_out(steps, text, save, name):
    deep = np.random.default_rng(0).integers(0, 65536, (50, 70), dtype=np.uint16)
    image, report = through(steps, text, save(deep, name))
    np.testing.assert_array_equal(np.asarray(image), deep)
    assert report["photo"]["bit_depth"] == 16


def test_sixteen_bits_in_color(steps, text, save, reference):
    deep = np.random.default_rng(0).integers(20_000, 50_000, (50, 70), dtype=np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, deep)
    ab = np.full((1, 2, 128, 128), 0.1, np.float32)
    decode, encode = steps
    (decoded,) = decode.run(
        {"photo": text([file.getvalue()]), "reference": text([save(reference)])}
    )
    (answer,) = encode.run(
        {"restored_l": decoded["photo_l"], "ab": ab, "photo_info": decoded["photo_info"]}
    )
    pixels = tifffile.imread(io.BytesIO(answer["result"][0, 0]))
    assert pixels.dtype == np.uint16
    lab = sk.rgb2lab(pixels / 65535.0)
    expected = sk.rgb2lab(np.repeat(deep[..., None] / 65535.0, 3, axis=-1))[..., 0]
    np.testing.assert_allclose(lab[..., 0], expected, atol=0.01)
    np.testing.assert_allclose(lab[..., 1:], 11, atol=0.05)


def test_metadata_survives(steps, text, save, reference):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "Grandmother", 6
    photo = np.ascontiguousarray(data.camera()[:60, :90])
    file = save(photo, "JPEG", exif=exif, dpi=(600, 600))
    image, report = through(steps, text, file, save(reference))
    assert image.size == (60, 90), "upright"
    assert report["photo"]["width"] == 60
    assert image.getexif()[0x0112] == 1
    assert image.getexif()[0x010E] == "Grandmother"
    assert image.info["dpi"] == (600, 600)


def test_batch(steps, text, save, reference):
    decode, encode = steps
    photos = [np.ascontiguousarray(data.astronaut()[:h, :w]) for h, w in ((64, 64), (90, 40))]
    (decoded,) = decode.run(
        {
            "photo": text([save(photo) for photo in photos]),
            "reference": text([save(reference), b""]),
            "options": text([b'{"format": "png"}', b'{"format": "tiff"}']),
        }
    )
    request = perfect_networks(decoded, photos)
    (answer,) = encode.run({**request, **confidences(request, 0.25)})
    first, first_report = opened(answer, 0)
    second, second_report = opened(answer, 1)
    np.testing.assert_array_equal(np.asarray(first), photos[0])
    assert (second.format, second.size, second.mode) == ("TIFF", (40, 90), "L")
    assert (first_report["colorized"], second_report["colorized"]) == (True, False)
    assert (first_report["mean_confidence"], second_report["mean_confidence"]) == (0.25, None)


def test_confidence_leaves_the_padding_out(steps, text, save, reference):
    decode, encode = steps
    photo = data.camera()[:64, :64]
    (decoded,) = decode.run({"photo": text([save(photo)]), "reference": text([save(reference)])})
    request = {
        "restored_l": decoded["photo_l"],  # padded to 128 x 128
        "ab": np.zeros((1, 2, 32, 32), np.float32),
        "photo_info": decoded["photo_info"],
    }
    maps = confidences(request)
    for i, level in enumerate(maps.values()):
        side = level.shape[-1]
        level[..., side // 2 :] = level[..., side // 2 :, :] = -1.0
        level[..., : side // 2, : side // 2] = 0.1 * i
    (answer,) = encode.run({**request, **maps})
    assert opened(answer)[1]["mean_confidence"] == pytest.approx(0.15, abs=1e-4)


def test_the_share_that_was_filled_leaves_the_padding_out(steps, text, save, reference):
    decode, encode = steps
    photo = data.camera()[:64, :64]
    (decoded,) = decode.run({"photo": text([save(photo)]), "reference": text([save(reference)])})
    light = decoded["photo_l"]  # padded to 128 x 128
    mask = np.ones_like(light)
    mask[..., :64, :64] = 0
    mask[..., 10:18, :32] = 0.25
    request = {
        "restored_l": light,
        "damage_mask": mask,
        "ab": np.zeros((1, 2, 32, 32), np.float32),
        "photo_info": decoded["photo_info"],
    }
    (answer,) = encode.run(request)
    assert opened(answer)[1]["damaged_share"] == 8 * 32 / 64**2


def test_report_without_confidences(steps, text, save, reference):
    decode, encode = steps
    photo = data.camera()[:64, :64]
    (decoded,) = decode.run({"photo": text([save(photo)]), "reference": text([save(reference)])})
    ab = np.zeros((1, 2, 32, 32), np.float32)
    (answer,) = encode.run(
        {"restored_l": decoded["photo_l"], "ab": ab, "photo_info": decoded["photo_info"]}
    )
    assert opened(answer)[1]["mean_confidence"] is None


def test_report_names_the_exported_checkpoint(load, tmp_path):
    assert load("encode_photo", repository=tmp_path).model.models == {}
    checkpoint = {"preset": "compact", "sha256": "1f0c5e7a99"}
    other = {"preset": "paper", "sha256": "2f0c5e7a99", "system": "latent"}
    manifest = {"checkpoint": checkpoint, "others": {"latent": {"checkpoint": other}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert load("encode_photo", repository=tmp_path).model.models == {
        "pikfix": ("compact-1f0c5e7a", "1f0c5e7a99"),
        "latent": ("paper-2f0c5e7a", "2f0c5e7a99"),
    }


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("colorized", [False, True])
def test_results_say_what_a_machine_did(steps, text, save, reference, name, colorized):
    photo = save(np.ascontiguousarray(data.camera()[:60, :80]))
    options = json.dumps({"format": name, "color": colorized}).encode()
    image, report = through(steps, text, photo, save(reference), options=options)
    file = io.BytesIO()
    image.save(file, "PNG")  # to be sure that it is a picture
    expected = provenance.COMPOSITE if colorized else provenance.ENHANCED
    assert report["digital_source_type"] == expected
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or image.tag_v2[700]
    packet = packet.encode() if isinstance(packet, str) else packet
    assert provenance.source_type_of(packet) == expected
    (event,) = provenance.history_of(packet)
    assert event.what.startswith("restored")
    assert ("colorized" in event.what) == colorized


def test_what_was_done_is_said_also_where_there_is_no_room_for_the_rest(steps, text):
    pixels = Image.fromarray(np.ascontiguousarray(data.camera()[:60, :80]))
    about = PngImagePlugin.PngInfo()
    body = "".join(f"<x:a{i}>{'b' * 1000}</x:a{i}>" for i in range(70))
    about.add_itxt(
        "XML:com.adobe.xmp",
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="">'
        f"{body}</rdf:Description></rdf:RDF></x:xmpmeta>",
    )
    file = io.BytesIO()
    pixels.save(file, "PNG", pnginfo=about)
    image, report = through(steps, text, file.getvalue(), options=b'{"format": "jpeg"}')
    assert "the XMP packet is too long for JPEG and was dropped" in report["warnings"]
    assert provenance.source_type_of(image.info["xmp"]) == provenance.ENHANCED
    image, report = through(steps, text, file.getvalue(), options=b'{"format": "png"}')
    assert len(image.info["XML:com.adobe.xmp"]) > 70_000
    assert not any("XMP" in warning for warning in report["warnings"])
