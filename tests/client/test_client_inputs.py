"""What a caller may give, and what is sent for it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pikfix.client import (
    InvalidOptionsError,
    InvalidPhotoError,
    InvalidReferenceError,
    InvalidTensorError,
    Limits,
    MessageTooLargeError,
    PikFixClient,
    Retry,
    Timeout,
    Tls,
)
from pikfix.client._inputs import encode_photo


def sent(server, name, request=-1):
    from fake_triton import inputs_of

    return inputs_of(server.requests[request])[name]


@pytest.fixture
def client(server):
    with PikFixClient(server.url) as one:
        yield one


@pytest.mark.parametrize("kind", [str, "path", bytes, bytearray, memoryview])
def test_files_are_sent_as_they_are(client, server, jpeg, tmp_path, kind):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg)
    photo = {"path": path, str: str(path)}.get(kind) or kind(jpeg)
    client.restore(photo)
    assert sent(server, "photo").tolist() == [[jpeg]]


@pytest.mark.parametrize("pixels", [data.camera()[:40, :50], data.astronaut()[:33, :51]])
def test_arrays_arrive_without_loss(client, server, pixels):
    result = client.restore(pixels)
    arrived = Image.open(io.BytesIO(sent(server, "photo").item()))
    np.testing.assert_array_equal(np.asarray(arrived), pixels)
    assert json.loads(sent(server, "options").item())["format"] == "png"
    assert result.report.result.format == "png"


def test_a_view_of_an_array_arrives_as_it_looks(client, server):
    pixels = data.astronaut()[::-2, ::3, ::-1]
    client.restore(pixels)
    arrived = Image.open(io.BytesIO(sent(server, "photo").item()))
    np.testing.assert_array_equal(np.asarray(arrived), pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "PA"]
)
def test_images_of_every_picture_mode_arrive(mode):
    base = Image.fromarray(data.coffee()[:40, :50])
    image = base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)
    sent = encode_photo(image)
    assert sent.here
    arrived = Image.open(io.BytesIO(sent.data))
    np.testing.assert_array_equal(
        np.asarray(arrived.convert("RGB")), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_images_keep_their_depth(mode):
    values = np.linspace(0, 65535, 600).round().astype(np.uint16).reshape(20, 30)
    stored = {"I;16": values, "I;16B": values.astype(">u2"), "I": values.astype(np.int32)}
    image = Image.fromarray(stored[mode])
    assert image.mode == mode
    arrived = Image.open(io.BytesIO(encode_photo(image).data))
    np.testing.assert_array_equal(np.asarray(arrived).astype(np.int64), values)


def test_an_image_is_sent_upright_and_with_its_colour_profile(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right by a viewer
    path = tmp_path / "turned.jpg"
    Image.fromarray(data.astronaut()[:40, :60]).save(path, exif=exif, icc_profile=profile)
    with Image.open(path) as image:
        arrived = Image.open(io.BytesIO(encode_photo(image).data))
    assert arrived.size == (40, 60)
    assert arrived.getexif().get(0x0112, 1) == 1
    assert arrived.info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (b"", "empty"),
        (np.zeros((4, 4), np.float32), r"shape \[4, 4\] of float32"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((4, 4), np.bool_), "bool"),
        (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]"),
        (np.zeros((0, 4), np.uint8), r"\[0, 4\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "mode F"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "-1"),
        (7, "builtins.int"),
        (None, "NoneType"),
        ([b"x"], "builtins.list"),
    ],
)
def test_what_is_no_photo_is_refused_before_sending(client, server, photo, said):
    with pytest.raises(InvalidPhotoError, match=said):
        client.restore(photo)
    with pytest.raises(InvalidReferenceError, match=said if photo is not None else None):
        client.restore(data.camera()[:8, :8], [data.astronaut()[:8, :8], photo])
    assert server.requests == []


def test_a_truncated_image_is_refused(client, jpeg):
    with (
        Image.open(io.BytesIO(jpeg[: len(jpeg) // 2])) as image,
        pytest.raises(InvalidPhotoError, match="truncated"),
    ):
        client.restore(image)


def test_files_that_cannot_be_read_raise_the_usual_errors(client, tmp_path):
    with pytest.raises(FileNotFoundError):
        client.restore(tmp_path / "missing.jpg")
    with pytest.raises(IsADirectoryError):
        client.restore(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InvalidPhotoError, match=r"empty\.jpg is empty"):
        client.restore(tmp_path / "empty.jpg")


def test_references_none_one_and_several(client, server, jpeg):
    client.restore(jpeg)
    client.restore(jpeg, [])
    client.restore(jpeg, jpeg)
    client.restore(jpeg, [jpeg, data.astronaut()[:9, :9], b"third"])
    names = [[tensor.name for tensor in request.inputs] for request in server.requests]
    assert names[0] == names[1] == ["photo", "options"]
    assert names[2] == names[3] == ["photo", "reference", "options"]
    assert sent(server, "reference", 2).tolist() == [[jpeg]]
    several = sent(server, "reference", 3)
    assert several.shape == (1, 3)
    assert several[0, 0] == jpeg
    assert several[0, 2] == b"third"


def test_bytes_that_end_in_zeros_arrive_whole(client, server, fake):
    server.answer = lambda request, context: fake.response(
        "pikfix_photo",
        result=b"\x00end\x00\x00",
        report=json.dumps(fake.report_of(1, 1, "png")).encode(),
    )
    result = client.restore(b"\x00photo\x00\x00")
    assert sent(server, "photo").item() == b"\x00photo\x00\x00"
    assert result.data == b"\x00end\x00\x00"


def test_options_are_what_was_asked_for(client, server, jpeg):
    client.restore(jpeg)
    assert json.loads(sent(server, "options").item()) == {}
    client.restore(jpeg, color=False, format="webp", quality=7)
    wanted = {"color": False, "format": "webp", "quality": 7}
    assert json.loads(sent(server, "options").item()) == wanted
    client.restore(jpeg, force_color=True)
    wanted = {"force_color": True}
    assert json.loads(sent(server, "options").item()) == wanted
    client.restore(jpeg, force_photo=True)
    wanted = {"force_photo": True}
    assert json.loads(sent(server, "options").item()) == wanted
    newer = {"profile": "srgb", "depth": 16, "pages": "first", "keep_color": True}
    newer |= {"strength": 0.5, "color_strength": 0.0, "faces": False}
    client.restore(jpeg, **newer)
    assert json.loads(sent(server, "options").item()) == newer
    # A server of before refuses what it does not know.
    client.restore(
        jpeg, profile="own", depth=None, pages="all", keep_color=False, strength=1, color_strength=1
    )
    assert json.loads(sent(server, "options").item()) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 0},
        {"quality": 101},
        {"quality": 95.0},
        {"quality": True},
        {"quality": "95"},
        {"format": "jpg"},
        {"format": "gif"},
        {"color": "no"},
        {"color": 1},
        {"force_color": "yes"},
        {"force_photo": 1},
        {"faces": 0},
        {"force_color": True, "color": False},
        {"keep_color": True, "color": False},
        {"keep_color": "yes"},
        {"keep_color": None},
        {"profile": "adobe"},
        {"depth": 12},
        {"depth": "8"},
        {"depth": True},
        {"pages": 1},
        {"pages": np.zeros(2)},
        {"strength": -0.1},
        {"strength": float("nan")},
        {"strength": True},
        {"color_strength": "1"},
        {"color_strength": None},
    ],
)
def test_wrong_options_are_refused_before_sending(client, server, jpeg, options):
    with pytest.raises(InvalidOptionsError, match=next(iter(options))):
        client.restore(jpeg, **options)
    assert server.requests == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_wrong_timeouts_are_refused(client, jpeg, timeout):
    with pytest.raises(ValueError, match="timeout must be"):
        client.restore(jpeg, timeout=timeout)


GOOD_L = np.zeros((2, 1, 32, 64), np.float32)
GOOD_LAB = np.zeros((2, 3, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("photo_l", "reference_lab", "said"),
    [
        (GOOD_L.astype(np.float64), GOOD_LAB, "photo_l must be .* float64"),
        (GOOD_L[0], GOOD_LAB, r"photo_l must be \[\*, 1, \*, \*\]"),
        (np.zeros((2, 3, 32, 32), np.float32), GOOD_LAB, "photo_l must be"),
        (np.zeros((2, 1, 0, 32), np.float32), GOOD_LAB, "photo_l must be"),
        (GOOD_L.tolist(), GOOD_LAB, "got list"),
        (GOOD_L, GOOD_LAB[0], "reference_lab must be"),
        (GOOD_L, GOOD_LAB[:, :, :2], "reference_lab must be"),
        (GOOD_L, GOOD_LAB[:, :0], "reference_lab must be"),
        (GOOD_L, GOOD_LAB[:1], "batch size 2 and reference_lab 1"),
        (np.full_like(GOOD_L, np.nan), GOOD_LAB, "photo_l holds NaN"),
        (GOOD_L, np.full_like(GOOD_LAB, np.inf), "reference_lab holds NaN or inf"),
    ],
)
def test_wrong_tensors_are_refused_before_sending(client, server, photo_l, reference_lab, said):
    with pytest.raises(InvalidTensorError, match=said):
        client.infer(photo_l, reference_lab)
    assert server.requests == []


def test_a_request_over_the_limit_is_refused_before_sending(server):
    with PikFixClient(server.url, limits=Limits(message_bytes=200_000)) as client:
        with pytest.raises(MessageTooLargeError, match="300000 bytes"):
            client.restore(b"x" * 100_000, [b"y" * 100_000] * 2)
        with pytest.raises(MessageTooLargeError):
            client.infer(np.zeros((1, 1, 512, 512), np.float32), GOOD_LAB[:1])
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "http://localhost:8000",
        "grpc://localhost:8001",
        "localhost:8001/",
        "localhost:0",
        "localhost:65536",
        ":8001",
        "::1:8001",
        "",
        "a b:8001",
    ],
)
def test_wrong_addresses_are_refused(url):
    with pytest.raises(ValueError, match="HOST:PORT"):
        PikFixClient(url)


@pytest.mark.parametrize("url", ["localhost:8001", "[::1]:8001", "triton.example.org:443", "a:1"])
def test_good_addresses_are_taken_without_connecting(url):
    with PikFixClient(url) as client:
        assert client.url == url


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeout(request=0),
        lambda: Timeout(connect=-1),
        lambda: Timeout(status=float("nan")),
        lambda: Limits(message_bytes=0),
        lambda: Limits(message_bytes=2**31),
        lambda: Limits(keepalive=0),
        lambda: Retry(attempts=0),
        lambda: Retry(attempts=6),
        lambda: Retry(initial_backoff=0),
        lambda: Retry(budget_tokens=0),
        lambda: Tls(private_key="key.pem"),
    ],
)
def test_value_objects_check_their_values(make):
    with pytest.raises(ValueError, match=r"must be|together"):
        make()


def test_keepalive_stays_above_what_a_triton_server_accepts():
    assert Limits().keepalive > 300
