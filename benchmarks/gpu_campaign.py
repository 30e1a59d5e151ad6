"""Everything that is to be shown on a GPU, in one call of under ten minutes on a bare machine.

    python benchmarks/gpu_campaign.py --prepare BUNDLE --libpython FILE    # here, beforehand
    python benchmarks/gpu_campaign.py OUT --bundle BUNDLE                  # there; again to go on
    python benchmarks/gpu_campaign.py OUT --report h100                    # here again

The machine needs Python 3.12, PyTorch with CUDA, Triton, numpy, Pillow and safetensors; no network.
Every figure is a line of OUT/rows.jsonl as soon as it is known, and what is there is not measured
again. Each section is a fork of one process that has imported everything: one that crashes or takes
too long leaves the others theirs. `--rehearse` runs all of it in miniature on a CPU.

Exit codes: 0 all sections ended; 1 one of them failed or ran out of time; 3 there is no GPU.
"""

# The environment has to be set before PyTorch and Triton are imported.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_rows import Plan, Rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
CALL_SECONDS = 570
FAILED, NO_GPU = 1, 3


@dataclass(frozen=True)
class Section:
    """A part of the campaign: what it does, and how long it may take."""

    name: str
    seconds: float
    run: Callable[[Plan, Rows], None]


def make_importable() -> None:
    """Make pikfix importable, here and in processes to come, where it is not installed."""
    try:
        import pikfix.systems.pikfix.networks  # noqa: F401
    except ImportError:
        _first_on_path(ROOT / "src")


def _first_on_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (str(folder), given) if part)


def sections() -> list[Section]:
    """In the order in which they are worth most; imports all that they need."""
    import gpu_bundle
    import gpu_forms
    import gpu_kernels
    import gpu_networks
    import gpu_packages
    import gpu_probe
    import gpu_server

    def unpack(plan: Plan, rows: Rows) -> None:
        del rows
        gpu_bundle.unpack(plan)

    return [
        Section("probe", 20, gpu_probe.probe),
        Section("unpack", CALL_SECONDS, unpack),
        Section("compile", CALL_SECONDS, gpu_packages.compile_packages),
        Section("kernels", 130, gpu_kernels.kernels),
        Section("gluon", 45, gpu_kernels.gluon_tiles),
        Section("parity", 50, gpu_networks.parity),
        Section("networks", 95, gpu_networks.networks),
        Section("forms", 60, gpu_forms.forms),
        Section("serve", 165, gpu_server.run),
        Section("tiles", 60, gpu_kernels.candidate_tiles),
        Section("packages", CALL_SECONDS, gpu_packages.packages),
    ]


BACKGROUND = ("unpack", "compile")
"""What runs beside the other sections."""


def child(plan: Plan, section: Section, seconds: float) -> int:
    """Run a section in a fork; its process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        os.setsid()  # so that it can be ended with all that it started
        if section.name in BACKGROUND and plan.on_gpu:
            os.nice(5)
        from gpu_rows import BrokenDeviceError, OutOfTimeError, Rows

        faulthandler.enable()
        if not plan.on_gpu:
            _one_thread()
        rows = Rows(plan.out / "rows.jsonl", section.name, seconds)
        try:
            if plan.crash == section.name:
                os.abort()
            section.run(plan, rows)
            code = 0
        except (BrokenDeviceError, OutOfTimeError) as error:
            print(f"{section.name}: {type(error).__name__} {error}", flush=True)
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0][:300]
            rows.add("section", failed=f"{type(error).__name__}: {first}")
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the parent's clean-up
    return 0


def _one_thread() -> None:
    """Rehearse on one core: a section and the compilation beside it share a small machine."""
    import torch

    torch.set_num_threads(1)


def wait_for(pid: int, seconds: float) -> str | None:
    """Wait for a section's process and end it in time; what went wrong, if anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            _kill(pid)
            return None if code == 0 else f"ended with {code}" if code > 0 else f"signal {-code}"
        time.sleep(0.05)
    _kill(pid)
    os.waitpid(pid, 0)
    return f"stopped after {seconds:.0f} s"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(plan: Plan, seconds: float, chosen: list[str] | None, most: float) -> int:
    """One call: every section that is not ended yet, `most` seconds each; the exit code."""
    begin = time.monotonic()
    from gpu_rows import Rows

    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.bundle is not None and (plan.bundle / "site").is_dir():
        _first_on_path(plan.bundle / "site")
    end = begin + seconds
    problems: dict[str, str] = {}
    beside: dict[str, int] = {}
    note = Rows(plan.out / "rows.jsonl", "campaign", seconds)
    for section in sections():
        if chosen and section.name not in (*chosen, "unpack"):
            continue
        left = end - time.monotonic()
        if left < 2:
            problems[section.name] = "no time was left"
            continue
        if section.name in BACKGROUND:
            beside[section.name] = child(plan, section, left)
            continue
        allowed = min(left - 1, section.seconds, most)
        # The section looks at its clock between figures; one that does not is ended.
        problem = wait_for(child(plan, section, allowed), min(left, allowed + 10))
        if problem:
            problems[section.name] = problem
            note.add(section.name, failed=problem)
        if section.name == "probe" and problem == f"ended with {NO_GPU}":
            return NO_GPU
    for name, process in beside.items():
        problem = wait_for(process, max(0.1, min(5.0, end - time.monotonic())))
        if problem:
            problems[name] = problem
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    print(f"{time.monotonic() - begin:.0f} s; rows are in {plan.out / 'rows.jsonl'}")
    return FAILED if problems else 0


def miniature(plan: Plan) -> Plan:
    """The same campaign on a CPU, as small as its code allows."""
    tiny: dict[str, Any] = {
        "restoration_levels": [1, 4],
        "restoration_channels": 4,
        "restoration_growth": 2,
        "restoration_blocks": 1,
        "restoration_units": 1,
        "backbone_blocks": [1, 1, 1, 1],
        "backbone_width": 4,
        "adapter_channels": 4,
        "feature_channels": 16,
        "bins": 8,
        "stem_channels": 4,
        "encoder_units": [1, 1, 1, 1],
        "growth": 4,
        "bottleneck": 8,
        "fusion_units": 1,
        "decoder_channels": [8, 8, 8, 4, 4],
        "decoder_units": [1, 1, 1, 1, 1],
    }
    return replace(
        plan,
        device="cpu",
        warps=((16, 16, 64, 64), (32, 16, 64, 32)),
        operations=64,
        sides=(64, 32),
        batches=(1, 2),
        concurrency=(1, 4),
        seconds=0.02,
        load_seconds=0.5,
        warm_seconds=0.5,
        tiles=2,
        parity_side=64,
        networks={"tiny": tiny},
        packages=("restore",),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="rows and files; the next call goes on")
    parser.add_argument("--bundle", type=Path, help="what --prepare made")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/compact.safetensors")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of this call")
    parser.add_argument("--most", type=float, default=CALL_SECONDS, help="seconds of a section")
    parser.add_argument("--sections", nargs="+", help="these alone")
    parser.add_argument("--brief", action="store_true", help="fewer sizes, shorter loads")
    parser.add_argument("--networks", nargs="+", help="these alone")
    parser.add_argument("--rehearse", action="store_true", help="in miniature on a CPU")
    parser.add_argument("--crash", metavar="SECTION", help="let one crash, to see what is left")
    parser.add_argument("--prepare", type=Path, metavar="BUNDLE", help="make what is carried along")
    parser.add_argument("--python", help="version on the GPU's machine (3.12)")
    parser.add_argument("--libpython", type=Path, help="its shared library, if it lacks it")
    parser.add_argument("--report", metavar="NAME", help="write gpu-NAME.{json,md,png} from OUT")
    parser.add_argument("--note", action="append", default=[], help="for the report's head; again")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    return parser


def _plan(options: argparse.Namespace, out: Path, bundle: Path | None) -> Plan:
    from gpu_rows import Plan

    plan = Plan("cuda", out, bundle, options.checkpoint.resolve(), crash=options.crash)
    if options.rehearse:
        plan = miniature(plan)
    if options.networks:
        plan = replace(plan, networks={n: plan.networks[n] for n in options.networks})
    if options.brief:
        plan = replace(
            plan,
            sides=plan.sides[:1],
            batches=plan.batches[:2],
            concurrency=plan.concurrency[:2],
            load_seconds=plan.load_seconds / 2,
            tiles=plan.tiles // 2,
        )
    return plan


def main() -> None:
    """Read the command line."""
    parser = _parser()
    options = parser.parse_args()
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    make_importable()
    out = (options.out or Path(tempfile.mkdtemp(prefix="gpu-campaign-"))).resolve()
    bundle = options.bundle.resolve() if options.bundle else None
    plan = _plan(options, out, bundle)
    if options.report:
        from gpu_report import write_report

        try:
            write_report(out / "rows.jsonl", options.results, options.report, options.note)
        except ValueError as error:
            parser.exit(FAILED, f"{error}\n")
        return
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if options.prepare or (options.rehearse and bundle is None):
        import gpu_bundle

        bundle = (options.prepare or out / "bundle").resolve()
        python = options.python or (here if options.rehearse else "3.12")
        library = options.libpython or gpu_bundle.default_library(python)
        size = gpu_bundle.prepare(plan, bundle, python, library, packed=not options.rehearse)
        print(json.dumps({"bundle": str(bundle), "bytes": size, "mebibytes": round(size / 2**20)}))
        if options.prepare:
            return
        plan = replace(plan, bundle=bundle)
    raise SystemExit(run(plan, options.seconds, options.sections, options.most))


if __name__ == "__main__":
    main()
