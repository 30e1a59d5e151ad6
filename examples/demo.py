"""The whole product once: damage a sample photo, serve the networks, restore it, save the picture.

Run by `make demo`. Nobody chooses the reference: the server finds it in a library built from
scikit-image's colour samples. The photo is one view of a stereo pair; the other view, a real second
photo of the same scene, is among the samples. A second run exports and builds nothing again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont
from rich.progress import BarColumn, Progress, TextColumn

from pikfix.client import PikFixClient, PikFixError
from pikfix.export import ExportError, export_checkpoint
from pikfix.photos import write_atomically
from pikfix.references import LibraryError
from pikfix.references.builder import build_library
from pikfix.serving.errors import ServingError
from pikfix.serving.server import start_server
from pikfix.systems.checkpoint import CheckpointError
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


# Seconds on two cores with AVX2; what has passed says how fast this machine is.
EXPORT_STEPS = {
    "exporting damage": 1.0,
    "exporting restore": 1.0,
    "exporting similarity": 1.0,
    "exporting colorize": 1.0,
    "comparing with PyTorch": 6.0,
    "publishing": 1.0,
}
LIBRARY, SERVER, RESTORING = (
    "building a library of references",
    "starting a Triton server",
    "restoring",
)
STEPS = {LIBRARY: 4.0, SERVER: 12.0, RESTORING: 6.0}
FAILURES = (ExportError, CheckpointError, LibraryError, PikFixError, ServingError, OSError)
SOURCES = (
    *("export", "inference", "kernels", "model_repository", "networks", "photos"),
    *("references", "systems"),
)


def main() -> int:
    """Make the pictures; 0 on success, 1 with one line on stderr otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model-repository",
        type=Path,
        help="an exported repository; by default the checkpoint is exported into the output folder",
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/compact.safetensors"))
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=SEED, help="of the damage")
    options = parser.parse_args()
    try:
        return run(options)
    except FAILURES as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Export, build the library, serve and restore: what was done before is kept."""
    left, right, _ = skimage.data.stereo_motorcycle()
    grey = np.asarray(Image.fromarray(left).convert("L"), dtype=np.float32) / 255
    damaged = degrade(grey, np.random.default_rng(options.seed), DAMAGE).image
    photo = Image.fromarray((damaged * 255).round().astype(np.uint8))

    options.output.mkdir(parents=True, exist_ok=True)
    pictures, library = options.output / "samples", options.output / "library"
    made_from, key = options.output / "made-from.txt", key_of(options.checkpoint)
    fresh = made_from.is_file() and made_from.read_text() == key
    own = options.output / "model_repository"
    export = options.model_repository is None and not (fresh and (own / "manifest.json").is_file())
    with Steps({**(EXPORT_STEPS if export else {}), **STEPS}) as steps:
        if export:
            made_from.unlink(missing_ok=True)
            # Weights beside PyTorch need no tracing: seconds, where ONNX files take minutes.
            export_checkpoint(
                options.checkpoint,
                own,
                runtime="pytorch",
                instances=1,
                progress=lambda line: steps.begin(line.partition(" into ")[0]),
            )
        steps.begin(LIBRARY)
        save_samples(pictures, motorcycle=right)
        build_library(pictures, library, backbone=options.checkpoint, rebuild=not fresh)
        if export:
            write_atomically(made_from, key.encode())
        os.environ["PIKFIX_LIBRARY"] = str(library.resolve())
        steps.begin(SERVER)
        with (
            start_server(options.model_repository or own) as server,
            PikFixClient(server.grpc_url) as client,
        ):
            steps.begin(RESTORING)
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
    print(f"in a browser, with photos of your own: {web_command(options)}")
    return 0


def web_command(options: argparse.Namespace) -> str:
    """The line that opens the page on what the demo has made."""
    program = os.path.relpath(Path(sys.executable).with_name("pikfix"))
    repository = options.model_repository or options.output / "model_repository"
    words = ["--model-repository", repository, "--library", options.output / "library"]
    return shlex.join([program, "web", *map(str, words)])


class Steps:
    """Says what is being done and how long the rest will take: a bar, or lines in a pipe.

    Args:
        weights: what is to come, in order, and about how many seconds each takes.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._total = sum(weights.values())
        self._done = self._current = 0.0
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        )
        self._task = self._bar.add_task("", total=self._total, left="")

    def __enter__(self) -> Steps:
        """Show the bar where there is a terminal."""
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def begin(self, name: str) -> None:
        """Go on to a step; others than those announced count as part of the one before."""
        if name not in self._weights:
            return
        self._done += self._current
        self._current = self._weights.pop(name)
        elapsed = time.monotonic() - self._started
        # As if five seconds had passed as expected: the first steps say little.
        pace = (elapsed + 5) / (self._done + 5)
        left = f"about {max(1, round(pace * (self._total - self._done)))} s left"
        if self._bar.console.is_terminal:
            self._bar.update(self._task, completed=self._done, description=name, left=left)
        else:
            print(f"{name} ... ({elapsed:.0f} s so far, {left})", flush=True)


def key_of(checkpoint: Path) -> str:
    """What the export and the library depend on, as one line: weights, code and PyTorch."""
    digest = hashlib.sha256(checkpoint.read_bytes())
    root = Path(__file__).resolve().parents[1]
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{digest.hexdigest()} torch {version('torch')}\n"


def save_samples(folder: Path, **more: np.ndarray) -> None:
    """Write scikit-image's colour samples, and more pictures, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: getattr(skimage.data, name)() for name in SAMPLES}
    for name, pixels in {**pictures, **more}.items():
        if (folder / f"{name}.png").is_file():
            continue
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
