"""The whole product once: damage a sample photo, serve the networks, restore it, save the picture.

Run by `make demo`. Nobody chooses the reference: the server finds it in a library built from
scikit-image's colour samples. The photo is one view of a stereo pair; the other view, a real second
photo of the same scene, is among the samples.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from pikfix.client import PikFixClient, PikFixError
from pikfix.photos import write_atomically
from pikfix.references import LibraryError
from pikfix.references.builder import build_library
from pikfix.serving.errors import ServingError
from pikfix.serving.server import start_server
from pikfix.training.degradation import DegradationConfig, degrade

SEED = 6
# A faded, scratched print with holes, scanned in focus.
DAMAGE = DegradationConfig(
    strength=0.8,
    skip=0.2,
    unstructured=("noise", "jpeg", "fading"),
    structured={
        "scratches": 1.0,
        "dust": 1.0,
        "cracks": 0.6,
        "holes": 1.0,
        "creases": 0.5,
        "torn_edges": 0.3,
    },
)
CAPTION = 28
SAMPLES = (
    *("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry"),
    *("retina", "rocket"),
)


def main() -> int:
    """Make the pictures; 0 on success, 1 with one line on stderr otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/compact.safetensors"))
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=SEED, help="of the damage")
    options = parser.parse_args()

    left, right, _ = skimage.data.stereo_motorcycle()
    grey = np.asarray(Image.fromarray(left).convert("L"), dtype=np.float32) / 255
    damaged = degrade(grey, np.random.default_rng(options.seed), DAMAGE).image
    photo = Image.fromarray((damaged * 255).round().astype(np.uint8))

    try:
        print("building a library of references ...", flush=True)
        pictures, library = options.output / "samples", options.output / "library"
        save_samples(pictures, motorcycle=right)
        build_library(pictures, library, backbone=options.checkpoint, rebuild=True)
        os.environ["PIKFIX_LIBRARY"] = str(library.resolve())
        print("starting a Triton server ...", flush=True)
        with (
            start_server(options.model_repository) as server,
            PikFixClient(server.grpc_url) as client,
        ):
            print("restoring ...", flush=True)
            restored = client.restore(photo, format="png")
        references = restored.report.references
        if not references:
            print(f"demo: the photo stayed grey: {restored.report.warnings}", file=sys.stderr)
            return 1
        reference = Image.open(pictures / str(references[0].name))
        save(photo, options.output / "before.png")
        save(reference, options.output / "reference.png")
        save(restored.image, options.output / "after.png")
        comparison = side_by_side(
            ("before", photo), ("the chosen reference", reference), ("after", restored.image)
        )
        save(comparison, options.output / "comparison.png")
    except (LibraryError, PikFixError, ServingError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    seconds = restored.report.seconds
    print(
        f"restored {photo.width} x {photo.height} pixels "
        f"({seconds.decode_photo:.2f} s decoding, {seconds.networks:.2f} s in the networks, "
        f"{seconds.encode_photo:.2f} s encoding)"
    )
    for chosen in references:
        print(
            f"reference {chosen.name}: score {chosen.score:.2f}, share of the colours "
            f"{chosen.share:.0%}"
        )
    print(f"wrote {options.output / 'comparison.png'}")
    return 0


def save_samples(folder: Path, **more: np.ndarray) -> None:
    """Write scikit-image's colour samples, and more pictures, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: getattr(skimage.data, name)() for name in SAMPLES}
    for name, pixels in {**pictures, **more}.items():
        picture = Image.fromarray(pixels)
        picture.thumbnail((512, 512))
        save(picture, folder / f"{name}.png")


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; it appears whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def side_by_side(*pictures: tuple[str, Image.Image]) -> Image.Image:
    """Put captioned pictures of one height in a row."""
    height = max(picture.height for _, picture in pictures)
    width = sum(picture.width for _, picture in pictures) + 8 * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    left = 0
    for caption, picture in pictures:
        draw.text((left + 4, 2), caption, fill="black", font=font)
        sheet.paste(picture.convert("RGB"), (left, CAPTION))
        left += picture.width + 8
    return sheet


if __name__ == "__main__":
    sys.exit(main())
