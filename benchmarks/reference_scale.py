"""What the size of a reference does to the colours, and what it costs the similarity step.

Colours: one view of a scene, damaged as in the demo, restored at several sizes and coloured after
the other view at several sizes. Cost: the similarity step at 512 pixels with references of 256 and
512, its map of correlations written whole, made in blocks, or never written by the fused operators,
each in a process of its own. Answers are compared with PyTorch's first.

    python benchmarks/reference_scale.py --checkpoint FILE
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import skimage.color
import skimage.data
import torch
from common import RESULTS, processor, table, write_results
from PIL import Image

from pikfix.evaluation.parity import compare
from pikfix.export.onnx import export_onnx
from pikfix.inference import InferenceStep
from pikfix.inference.quantized import vnni_supported
from pikfix.photos import bucket_shape, pad_reflect, photo_luminance
from pikfix.photos.steps import Reference, matching_side, reference_planes, reference_shape
from pikfix.systems.base import Case, Step
from pikfix.systems.chain import run_step
from pikfix.systems.checkpoint import Loaded, load
from pikfix.systems.registry import system_of
from pikfix.training.degradation import degrade

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"
PHOTO_SIDES = (741, 512, 352, 256, 192)
REFERENCE_SIDES = (128, 192, 256, 352, 512, 640)
FORMS = ("whole map", "blocks", "fused fp32", "fused bf16")
CASES = ((256, 1), (512, 1), (512, 3))
"""Longest side and number of the references."""
JUDGED = (512, 352)
MIN_PSNR = 45.0


def scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture with this long side, never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def colours(checkpoint: Path) -> list[dict[str, Any]]:
    """PSNR in dB of the colours on the true luminance, by size of photo and reference."""
    demo = runpy.run_path(str(DEMO))
    left, right, _ = skimage.data.stereo_motorcycle()
    grey = np.asarray(Image.fromarray(left).convert("L"), np.float32) / 255
    damaged = degrade(grey, np.random.default_rng(demo["SEED"]), demo["DAMAGE"]).image
    damaged = (damaged * 255).round().astype(np.uint8)
    truth = np.asarray(Image.fromarray(left).resize(JUDGED, Image.Resampling.LANCZOS))
    light = skimage.color.rgb2lab(truth)[..., :1]
    model = load(checkpoint).model
    rows = []
    for side in PHOTO_SIDES:
        plane = photo_luminance(scaled(damaged, side))
        padded = bucket_shape(*plane.shape)
        photo_l = torch.from_numpy(pad_reflect(plane, padded)[None, None].astype(np.float32))
        served = matching_side((plane.shape[0], plane.shape[1]), padded, 512)
        for reference_side in sorted({*REFERENCE_SIDES, served}):
            shape = reference_shape(right.shape[:2], reference_side)
            lab = torch.from_numpy(reference_planes([Reference(right)], shape))[None]
            with torch.inference_mode():
                ab = model(photo_l, lab).ab[0].numpy()
            box = (
                0,
                0,
                ab.shape[2] * plane.shape[1] / padded[1],
                ab.shape[1] * plane.shape[0] / padded[0],
            )
            planes = [
                np.asarray(Image.fromarray(c).resize(JUDGED, Image.Resampling.BILINEAR, box=box))
                for c in ab * 110
            ]
            painted = skimage.color.lab2rgb(np.dstack([light, *planes]))
            psnr = -10 * np.log10(np.mean((painted - truth / 255) ** 2))
            rows.append(
                {
                    "photo": side,
                    "reference": reference_side,
                    "served": reference_side == served,
                    "psnr": float(psnr),
                }
            )
    return rows


def _similarity(loaded: Loaded) -> Step:
    (step,) = (step for step in loaded.steps if step.correlation)
    return step


def runner(form: str, checkpoint: Path, folder: Path) -> Callable[[dict[str, torch.Tensor]], Any]:
    """The similarity step in one of its forms: tensors in, warped_1 out."""
    if form.startswith("fused"):
        loaded = load(checkpoint)
        spec, model = _similarity(loaded), loaded.model
        step = InferenceStep(spec, spec.module(model), "bf16" if form.endswith("bf16") else "fp32")
        torch.set_flush_denormal(True)
        return lambda inputs: step(inputs)["warped_1"].numpy()
    path = folder / f"{form.replace(' ', '-')}.onnx"
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, torch.Tensor]) -> Any:
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return found[0]

    return run


def peak_kilobytes() -> int:
    """The most memory that this process had since its peak was last cleared."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def cost(form: str, side: int, count: int, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Time, processor time and additional peak memory of one form; run in a process of its own."""
    case = Case(1, count, (512, 512), (side, side))
    inputs = system_of("pikfix").sample_inputs(np.random.default_rng(0), case)
    inputs = {"working_l": inputs["photo_l"], "reference_lab": inputs["reference_lab"]}
    run = runner(form, checkpoint, folder)
    # Not ru_maxrss: a process inherits that of the one that started it.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kilobytes()
    times = []
    for _ in range(4):
        wall, busy = time.perf_counter(), time.process_time()
        answer = run(inputs)
        times.append((time.perf_counter() - wall, time.process_time() - busy))
    peak = peak_kilobytes() - before
    loaded = load(checkpoint)
    spec = _similarity(loaded)
    expected = run_step(loaded.modules[spec.name], spec, inputs)["warped_1"]
    psnr = compare(expected.numpy(), answer).psnr
    if psnr < MIN_PSNR:
        raise ValueError(f"{form} is {psnr:.1f} dB from PyTorch's: not timing wrong results")
    return {
        "form": form,
        "reference": side,
        "references": count,
        "ms": 1000 * min(t for t, _ in times),
        "cpu_ms": 1000 * min(t for _, t in times),
        "peak_mb": peak / 1024,
    }


def costs(checkpoint: Path) -> list[dict[str, Any]]:
    """All forms and cases, one process after the other."""
    loaded = load(checkpoint)
    spec = _similarity(loaded)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form, runtime in (("whole-map", "onnxruntime-cuda"), ("blocks", "onnxruntime")):
            path = Path(folder) / f"{form}.onnx"
            export_onnx(loaded.modules[spec.name], spec, path, runtime=runtime)
        for side, count in CASES:
            for form in FORMS:
                words = [form, str(side), str(count), str(checkpoint), folder]
                answer = subprocess.run(
                    [sys.executable, __file__, "--cost", *words],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                rows.append(json.loads(answer.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The report's text."""
    found = {(row["photo"], row["reference"]): row for row in result["colours"]}
    body = []
    for side in PHOTO_SIDES:
        cells = [
            f"{found[side, r]['psnr']:.1f}" if (side, r) in found else "" for r in REFERENCE_SIDES
        ]
        served = next(row for row in found.values() if row["photo"] == side and row["served"])
        body.append([side, *cells, f"{served['psnr']:.1f} ({served['reference']})"])
    costs_ = [
        [r["reference"], r["references"], r["form"], r["ms"], r["cpu_ms"], r["peak_mb"]]
        for r in result["costs"]
    ]
    machine = result["environment"]
    return (
        "# The scale of a reference\n\n"
        "PSNR in dB of the colours on the true luminance, 512 x 352, of the demo's photo by its "
        "long side, with a reference of another. The last column is what is served.\n\n"
        f"{table(['photo', *map(str, REFERENCE_SIDES), 'served'], body)}\n"
        "The similarity step of a photo of 512 x 512: best of four runs, and how far memory rose "
        "above that before the first.\n\n"
        f"{table(['reference', 'number', 'form', 'ms', 'processor ms', 'MB'], costs_)}\n"
        f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['features'])}), "
        f"torch {torch.__version__}, onnxruntime {ort.__version__}, {machine['date']}, load "
        f"{machine['load']:.1f} at the start; checkpoint {result['checkpoint']}.\n"
    )


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/compact.safetensors"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cost", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        form, side, count, checkpoint, folder = options.cost
        print(json.dumps(cost(form, int(side), int(count), Path(checkpoint), Path(folder))))
        return
    features = ["AVX-512" if torch.cpu._is_avx512_supported() else "AVX2"]
    result: dict[str, Any] = {
        "environment": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "features": [*features, *(["VNNI"] if vnni_supported() else [])],
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "load": os.getloadavg()[0],
        },
        "checkpoint": options.checkpoint.name,
        "colours": colours(options.checkpoint),
        "costs": costs(options.checkpoint),
    }
    write_results(options.out / "reference-scale", result, markdown(result))


if __name__ == "__main__":
    main()
