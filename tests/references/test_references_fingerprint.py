import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pikfix.references.fingerprint import COPY_DISTANCE, distances, fingerprint, orientations
from pikfix.references.pictures import reduce_picture


def prints(image):
    return fingerprint(reduce_picture(np.asarray(image)).luminance)


def encoded(image, name, quality):
    file = io.BytesIO()
    image.save(file, name, quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def trimmed(image):
    margin = image.width // 100
    return image.crop((margin, margin, image.width - margin, image.height - margin))


COPIES = {
    "jpeg": lambda image: encoded(image, "JPEG", 50),
    "webp": lambda image: encoded(image, "WEBP", 50),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda image: image.rotate(180),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "all at once": lambda image: encoded(
        ImageOps.mirror(image).resize((image.width // 2, image.height // 2)), "JPEG", 60
    ),
    "trimmed": trimmed,
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_near(samples, kind):
    for name, pixels in samples.items():
        image = Image.fromarray(pixels)
        own = orientations(prints(COPIES[kind](image)))
        assert distances(own, prints(image)[None])[0] <= COPY_DISTANCE, name


def test_other_pictures_are_far(samples):
    found = [prints(Image.fromarray(pixels)) for pixels in samples.values()]
    for number, own in enumerate(found):
        others = np.stack(found[:number] + found[number + 1 :])
        assert distances(orientations(own), others).min() > COPY_DISTANCE


def test_orientations_are_those_of_the_turned_pictures(samples):
    luminance = reduce_picture(samples["astronaut_1.png"]).luminance
    got = orientations(fingerprint(luminance))
    turned = (luminance, luminance[:, ::-1], luminance[::-1], luminance[::-1, ::-1])
    np.testing.assert_array_equal(got, np.stack([fingerprint(one) for one in turned]))


def test_distance_counts_bits():
    queries = np.zeros((2, 32), np.uint8)
    queries[1, 0] = 0b1111
    candidates = np.zeros((3, 32), np.uint8)
    candidates[1, 0], candidates[2, 31] = 0b1011, 0xFF
    assert distances(queries, candidates).tolist() == [0, 1, 8]
