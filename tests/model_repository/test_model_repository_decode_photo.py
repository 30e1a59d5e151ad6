import hashlib
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from skimage import color as sk
from skimage import data

from pikfix.photos import steps


@pytest.fixture
def step(load):
    return load("decode_photo")


@pytest.fixture(scope="module")
def photo():
    return np.ascontiguousarray(data.camera()[:100, :140])


@pytest.fixture(scope="module")
def reference():
    return np.ascontiguousarray(data.coffee())


def notes_of(answer, number=0):
    return json.loads(answer["photo_info"][number, 0])


def refusal(answer, code, kind="INVALID_ARG"):
    """The error's message; it has the form that clients parse."""
    message = answer.message()
    assert message.startswith(f"[decode_photo] {code}: ")
    assert "\n" not in message
    assert answer.code().name == kind
    return message


def test_outputs(step, text, save, photo, reference):
    (answer,) = step.run(
        {"photo": text([save(photo)]), "reference": text([[save(reference, "JPEG")]])}
    )
    assert {name: array.shape for name, array in answer.items()} == {
        "photo_l": (1, 1, 128, 256),
        "reference_lab": (1, 1, 3, 96, 128),
        "photo_info": (1, 1),
    }
    assert answer["photo_l"].dtype == answer["reference_lab"].dtype == np.float32
    light = sk.rgb2lab(np.repeat(photo[..., None], 3, axis=-1))[..., 0] / 50 - 1
    padded = np.pad(light, ((0, 28), (0, 116)), mode="reflect")
    np.testing.assert_allclose(answer["photo_l"][0, 0], padded, atol=1e-6)
    notes = notes_of(answer)
    assert notes["size"] == [100, 140]
    assert notes["colorize"] is True
    assert notes["references"] == [
        {
            "source": "request",
            "name": None,
            "score": None,
            "share": None,
            "sha256": hashlib.sha256(save(reference, "JPEG")).hexdigest(),
        }
    ]
    assert notes["photo"] == {
        "width": 140, "height": 100, "format": "png", "mode": "L", "bit_depth": 8,
        "content": "photo", "rectangle": None,
    }  # fmt: skip
    assert 0 < notes["decode_seconds"] < 5
    assert abs(notes["decoded_at"] - time.time()) < 5


def test_reference_is_its_resized_lab(step, text, save, photo, reference):
    (answer,) = step.run({"photo": text([save(photo)]), "reference": text([save(reference)])})
    shrunk = Image.fromarray(reference).resize((128, 96), Image.Resampling.LANCZOS)
    lab = sk.rgb2lab(np.asarray(shrunk)).transpose(2, 0, 1)
    planes = answer["reference_lab"][0, 0]
    np.testing.assert_allclose(planes[0] * 50 + 50, lab[0], atol=1e-3)
    np.testing.assert_allclose(planes[1:] * 110, lab[1:], atol=1e-3)


@pytest.mark.parametrize("missing", ["absent", "empty", "empty list"])
def test_without_a_reference_the_photo_stays_grey_cheaply(step, text, save, photo, missing):
    request = {"photo": text([save(photo)])}
    if missing != "absent":
        empty = text([[b"", b""]]) if missing == "empty" else np.empty((1, 0), object)
        request["reference"] = empty
    (answer,) = step.run(request)
    assert answer["reference_lab"].shape == (1, 1, 3, 32, 32)
    assert not answer["reference_lab"].any()
    notes = notes_of(answer)
    assert notes["colorize"] is False
    assert notes["warnings"] == ["left grey: no reference was sent and the server has no library"]
    assert notes["references"] == []


def test_color_false_spends_nothing_on_references(step, text, save, photo):
    (answer,) = step.run(
        {
            "photo": text([save(photo)]),
            "reference": text([b"never looked at"]),
            "options": text([b'{"color": false, "format": "jpeg", "quality": 70}']),
        }
    )
    assert answer["reference_lab"].shape == (1, 1, 3, 32, 32)
    notes = notes_of(answer)
    assert (notes["colorize"], notes["format"], notes["quality"]) == (False, "jpeg", 70)
    assert notes["warnings"] == []


def test_several_references_share_the_first_ones_size(step, text, save, photo, reference):
    tall = save(np.ascontiguousarray(data.astronaut()[:, :200]))
    files = [save(reference), b"", tall]
    (answer,) = step.run({"photo": text([save(photo)]), "reference": text([files])})
    assert answer["reference_lab"].shape == (1, 2, 3, 96, 128)
    assert len(notes_of(answer)["references"]) == 2


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (340, 512, (352, 512)),
        (100, 140, (96, 128)),
        (512, 340, (352, 512)),  # the long sides agree, whatever the aspects
        (600, 800, (288, 448)),  # 896 with its padding, so that the photo is matched at 457
        (6, 9, (32, 32)),
    ],
)
def test_references_have_the_scale_at_which_the_photo_is_matched(
    step, text, save, reference, height, width, expected
):
    photo = save(np.full((height, width), 90, np.uint8))
    (answer,) = step.run({"photo": text([photo]), "reference": text([save(reference)])})
    assert answer["reference_lab"].shape[3:] == expected


def test_a_library_is_asked_where_no_reference_is_sent(step, text, save, photo, reference):
    asked = []

    def choose(picture, options):
        asked.append((picture.pixels.shape, options.force_color))
        return [steps.Reference(reference, "library", "coffee.jpg", 0.7)], None

    step.model.choose_references = choose
    sent = {"photo": text([save(photo)]), "reference": text([save(reference)])}
    chosen, given = step.run({"photo": text([save(photo)])}, sent)
    assert asked == [((100, 140), False)]
    assert notes_of(chosen)["references"] == [
        {"source": "library", "name": "coffee.jpg", "score": 0.7, "share": None, "sha256": None}
    ]
    assert chosen["reference_lab"].shape == (1, 1, 3, 96, 128)
    assert notes_of(given)["references"][0]["source"] == "request"


def test_a_library_without_a_suitable_picture_says_so(step, text, save, photo):
    def choose(picture, options):
        return [], f"nothing suits, force_color is {options.force_color}"

    step.model.choose_references = choose
    options = text([b'{"force_color": true}'])
    (answer,) = step.run({"photo": text([save(photo)]), "options": options})
    expected = "left grey: no reference was sent and nothing suits, force_color is True"
    assert notes_of(answer)["warnings"] == [expected]
    assert not notes_of(answer)["colorize"]


def test_batch_of_different_sizes_takes_the_largest_bucket(step, text, save, photo, reference):
    wide = np.ascontiguousarray(data.camera()[:40, :500])
    (answer,) = step.run(
        {
            "photo": text([save(photo), save(wide), save(photo[:1, :1])]),
            "reference": text(
                [[save(reference), save(reference)], [save(reference), b""], [b"", b""]]
            ),
            "options": text([b"", b'{"quality": 50}', b""]),
        }
    )
    assert answer["photo_l"].shape == (3, 1, 128, 512)
    assert answer["reference_lab"].shape == (3, 2, 3, 352, 512)
    np.testing.assert_array_equal(answer["reference_lab"][1, 0], answer["reference_lab"][1, 1])
    assert [notes_of(answer, n)["size"] for n in range(3)] == [[100, 140], [40, 500], [1, 1]]
    assert [notes_of(answer, n)["colorize"] for n in range(3)] == [True, True, False]
    assert [len(notes_of(answer, n)["references"]) for n in range(3)] == [2, 1, 0]
    assert notes_of(answer, 1)["quality"] == 50
    for number, pixels in enumerate((photo, wide, photo[:1, :1])):
        light = sk.rgb2lab(np.repeat(pixels[..., None], 3, axis=-1))[..., 0] / 50 - 1
        got = answer["photo_l"][number, 0, : pixels.shape[0], : pixels.shape[1]]
        np.testing.assert_allclose(got, light, atol=1e-6)


def test_one_bad_photo_fails_its_own_request_alone(step, text, save, photo):
    good = {"photo": text([save(photo)])}
    answers = step.run(dict(good), {"photo": text([b"text"])}, dict(good))
    refusal(answers[1], "bad_photo")
    for answer in (answers[0], answers[2]):
        assert answer["photo_l"].shape == (1, 1, 128, 256)


BAD_FILES = {
    "empty": (lambda file: b"", "bad_photo"),
    "text": (lambda file: b"Dear Sir or Madam", "bad_photo"),
    "truncated": (lambda file: file[: len(file) // 2], "bad_photo"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_photos(step, text, save, photo, kind):
    damage, code = BAD_FILES[kind]
    for name in ("PNG", "JPEG"):
        (answer,) = step.run({"photo": text([damage(save(photo, name))])})
        assert " send " in refusal(answer, code)


def test_bad_references(step, text, save, photo, reference):
    for kind in ("text", "truncated"):
        damage, _ = BAD_FILES[kind]
        files = [save(reference), damage(save(reference, "JPEG"))]
        (answer,) = step.run({"photo": text([save(photo)]), "reference": text([files])})
        assert "reference 2: " in refusal(answer, "bad_reference")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixel_limit_is_the_configurations(load, text, save, photo):
    step = load("decode_photo", max_pixels=100 * 140 - 1)
    (answer,) = step.run({"photo": text([save(photo)])})
    assert "140 x 100 pixels" in refusal(answer, "photo_too_large")
    (answer,) = load("decode_photo", max_pixels=100 * 140).run({"photo": text([save(photo)])})
    assert answer["photo_l"].shape == (1, 1, 128, 256)


def test_side_limit_is_the_configurations(load, text, save, photo, reference):
    step = load("decode_photo", max_side=139)
    (answer,) = step.run({"photo": text([save(photo)])})
    assert "139 a side" in refusal(answer, "photo_too_large")
    small = text([save(photo[:, :139])])
    (answer,) = step.run({"photo": small, "reference": text([[save(reference)]])})
    assert answer["photo_l"].shape[2] == 128


def test_default_pixel_limit_is_100_megapixels(step):
    assert step.model.max_pixels == 100_000_000


def test_sizes_are_the_configurations(load, text, save, photo, reference):
    step = load("decode_photo", bucket_sides="320, 160,64", reference_side=100, max_references=1)
    request = {"photo": text([save(photo)]), "reference": text([[save(reference)]])}
    (answer,) = step.run(dict(request))
    assert answer["photo_l"].shape == (1, 1, 160, 160)
    assert answer["reference_lab"].shape == (1, 1, 3, 64, 96)
    (answer,) = step.run({**request, "reference": text([[save(reference)] * 2])})
    assert "send at most 1" in refusal(answer, "bad_reference")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_pixels": "many"},
        {"bucket_sides": "100"},
        {"bucket_sides": "a"},
        {"reference_side": 31},
    ],
)
def test_wrong_configuration_keeps_the_model_from_loading(load, wrong):
    with pytest.raises(ValueError, match=r"max_pixels|100|'a'|reference_side"):
        load("decode_photo", **wrong)


@pytest.mark.parametrize(
    "options", [b"{", b"[]", b'{"size": 3}', b'{"quality": 0}', b'{"format": "gif"}']
)
def test_bad_options(step, text, save, photo, options):
    (answer,) = step.run({"photo": text([save(photo)]), "options": text([options])})
    refusal(answer, "bad_options")


def test_error_in_a_batch_names_the_photo(step, text, save, photo):
    (answer,) = step.run({"photo": text([save(photo), b"text"])})
    assert "photo 2 of 2: not a picture" in refusal(answer, "bad_photo")


@pytest.mark.parametrize("field", ["reference", "options"])
def test_rows_must_agree(step, text, save, photo, field):
    (answer,) = step.run({"photo": text([save(photo)]), field: text([b"", b""])})
    refusal(answer, "bad_tensor")


def test_two_files_in_one_row(step, text, save, photo):
    (answer,) = step.run({"photo": text([[save(photo)] * 2])})
    refusal(answer, "bad_tensor")


def test_deadline(step, text, save, photo):
    now = int(time.time() * 1000)
    late, early = step.run(
        {"photo": text([save(photo)]), "parameters": {"deadline_unix_ms": now - 1000}},
        {"photo": text([save(photo)]), "parameters": {"deadline_unix_ms": now + 60_000}},
    )
    # UNAVAILABLE would be retried.
    refusal(late, "deadline_exceeded", kind="CANCELLED")
    assert early["photo_l"].shape == (1, 1, 128, 256)


def test_an_unforeseen_failure_is_logged_and_answered(step, text, save, photo, backend):
    def choose(picture, options):
        raise RuntimeError("the library is gone\nreally")

    step.model.choose_references = choose
    (answer,) = step.run({"photo": text([save(photo)])})
    assert "RuntimeError" in refusal(answer, "internal", kind="INTERNAL")
    assert "the library is gone" in backend.Logger.errors[0]


def test_photos_of_every_kind(step, text, save):
    deep = np.random.default_rng(0).integers(0, 65536, (50, 70), dtype=np.uint16)
    (answer,) = step.run({"photo": text([save(deep)])})
    grey = np.repeat(deep[..., None] / 65535.0, 3, axis=-1)
    light = sk.rgb2lab(grey)[..., 0] / 50 - 1
    np.testing.assert_allclose(answer["photo_l"][0, 0, :50, :70], light, atol=1e-6)
    assert notes_of(answer)["deep"] is True
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(data.astronaut()[:50, :70]).save(file, "JPEG", exif=exif)
    (answer,) = step.run({"photo": text([file.getvalue()])})
    assert notes_of(answer)["size"] == [70, 50]


def test_the_steps_load_without_torch():
    code = "import sys, pikfix.photos.steps, pikfix.photos.responses; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_photos_are_taken_where_nothing_can_bound_them(
    load, backend, text, save, photo, tmp_path, monkeypatch
):
    """The file for their places belongs to somebody else, or is a folder; said once."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    step = load("decode_photo", max_in_flight=1)
    place = step.model._in_flight.path
    place.mkdir()
    request = {"photo": text([save(photo)])}
    for _ in range(3):
        (answer,) = step.run(request)
        assert notes_of(answer)["place"] is None
    (warning,) = backend.Logger.warnings
    assert warning == (
        f"[decode_photo] photos in flight are not bounded, as {place} cannot be used: Is a"
        " directory; set TMPDIR to a folder of this user"
    )
    place.rmdir()
    (answer,) = step.run(request)
    assert notes_of(answer)["place"] == 0
    (answer,) = step.run(request)
    refusal(answer, "busy", "UNAVAILABLE")
