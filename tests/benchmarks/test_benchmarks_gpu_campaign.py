"""The GPU campaign rehearsed on a CPU, without the packages that the GPU's machine lacks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_campaign.py"
SECTIONS = {"probe", "compile", "kernels", "tiles", "parity", "networks", "forms", "serve"}
SECTIONS |= {"packages"}

# Absent there. What the bundle brings along, under the campaign's own folders, may be imported.
BLOCKED = f"""
import os
import sys
from importlib.machinery import PathFinder

NAMES = {{
    "tritonclient", "kornia", "onnxruntime", "tensorrt", "faiss", "pytriton", "torchmetrics",
    "lightning_fabric", "locust", "grpc", "pikfix",
}}
# What this environment has by its editable install, unless the campaign put it there itself.
SOURCE = {str(ROOT / "src")!r}
if sys.prefix == {sys.prefix!r} and SOURCE not in os.environ["PYTHONPATH"].split(os.pathsep):
    sys.path[:] = [p for p in sys.path if p != SOURCE]


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name not in NAMES:
            return self.finder.find_spec(name, path, target)
        if self.finder is not PathFinder:
            return None
        kept = [p for p in sys.path if "site-packages" not in p and "__editable__" not in p]
        return PathFinder.find_spec(name, kept)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made where everything is installed, as a developer makes it."""
    folder = tmp_path_factory.mktemp("prepared") / "bundle"
    done = campaign("--rehearse", "--prepare", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["bytes"] == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine that lacks packages."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return {**os.environ, "PYTHONPATH": str(folder)}


def campaign(*words: object, env: dict[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # on a machine that does other things, too
        cwd="/",
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def rehearsed(
    bundle: Path, bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A whole rehearsal, in which the section `tiles` crashes."""
    out = tmp_path_factory.mktemp("rehearsal")
    words = ("--rehearse", "--bundle", bundle, "--crash", "tiles")
    done: Any = campaign(out, *words, env=bare)
    done.rows = rows_of(out)  # before another test's call adds to them
    return out, done


def test_the_machine_lacks_what_it_lacks(bare: dict[str, str]) -> None:
    for name in ("tritonclient", "kornia", "onnxruntime", "pytriton", "pikfix.layers"):
        words = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(words, env=bare, capture_output=True, text=True, check=False, cwd="/")
        assert "ModuleNotFoundError" in done.stderr, (name, done.stderr)


def test_every_section_leaves_rows_and_one_that_crashes_leaves_the_others(
    rehearsed: tuple[Path, Any],
) -> None:
    _, done = rehearsed
    said = done.stdout + done.stderr
    rows = done.rows
    good = [row for row in rows if "failed" not in row]
    assert {row["section"] for row in good} == SECTIONS - {"tiles"}, said
    assert done.returncode == 1
    failed = {(row["section"], row["key"]): row["failed"] for row in rows if "failed" in row}
    assert failed == {("campaign", "tiles"): "signal 6"}, said
    assert "tiles: signal 6" in done.stdout


def test_what_the_rows_say(rehearsed: tuple[Path, Any]) -> None:
    out, done = rehearsed
    rows = {(row["section"], row["key"]): row for row in done.rows}
    machine = rows["probe", "machine"]
    assert machine["rehearsal"] is True
    assert machine["gpu"] is None
    assert machine["versions"]["torch"]
    parity = {key: row for (section, key), row in rows.items() if section == "parity"}
    assert len(parity) == 15
    for key, row in parity.items():
        if row["step"] in ("damage", "tone"):  # in float32 whatever is asked for
            assert row["max_abs"] < 1e-6, key
            continue
        assert row["psnr"] > {"fp32": 100, "fp16": 45, "bf16": 25}[row["precision"]], key
    speeds = [row for row in rows.values() if row["section"] == "networks" and "share" in row]
    assert len(speeds) == 4
    for row in speeds:
        assert sum(row["share"].values()) == pytest.approx(1)
        total = sum(step["median"] for step in row["milliseconds"].values())
        assert row["photos_per_second"] == pytest.approx(1000 * row["batch"] / total)
        assert row["peak_bytes"] is None  # nobody measured it
    (start,) = (r for (s, key), r in rows.items() if s == "serve" and "start" in key)
    assert start["server"] == str(out / "server/pytriton/tritonserver/bin/tritonserver")
    (warming,) = (row for row in rows.values() if "warming" in row)
    loads = [row for row in rows.values() if row["section"] == "serve" and "p50_ms" in row]
    loads.remove(warming)
    assert len(loads) == 3
    timed = [row for row in loads if "steps" in row]
    assert [row["clients"] for row in timed] == [1, 4]
    for row in timed:
        # The machine's clock of busy cores goes on while the server is asked for its statistics.
        assert 0 < row["busy_cores"] <= 1.5 * machine["cores"]
        assert row["steps"]["decode_photo"]["requests"] == row["photos"]
    assert all(row["photos"] > 0 and row["refused"] == 0 for row in loads)
    package = rows["packages", "restore"]
    assert package["max_abs"] < 1e-3
    assert package["operators"] is False  # in a process that knows none of this project's


def test_what_is_there_is_not_measured_again(
    rehearsed: tuple[Path, Any], bundle: Path, bare: dict[str, str]
) -> None:
    """The second call does what the crash has left undone, and nothing else."""
    out, _ = rehearsed
    before = rows_of(out)
    done = campaign(out, "--rehearse", "--bundle", bundle, env=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    new = rows_of(out)[len(before) :]
    assert {row["section"] for row in new} == {"tiles"}
    assert len(new) == 4
    assert all(row["error"] < 1e-4 and "failed" not in row for row in new)


def test_a_rehearsal_is_no_report(rehearsed: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = rehearsed
    done = campaign(out, "--report", "none", "--results", tmp_path)
    assert done.returncode == 1
    assert "is a rehearsal on a CPU" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = campaign(tmp_path, "--sections", "probe", "kernels", env=env)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "nothing was measured" in done.stdout
    rows = rows_of(tmp_path) if (tmp_path / "rows.jsonl").is_file() else []
    assert {row["section"] for row in rows} <= {"campaign"}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_rows_survive_a_process_that_dies_and_figures_are_tried_twice(
    modules: Any, tmp_path: Path
) -> None:
    gpu_rows = modules("gpu_rows")
    path = tmp_path / "rows.jsonl"
    tried: list[str] = []

    def fails() -> dict[str, Any]:
        tried.append("fails")
        raise RuntimeError("CUDA out of memory\nand more")

    for _ in range(3):
        rows = gpu_rows.Rows(path, "a", 60)
        rows.measure("good", lambda: {"value": tried.append("good") or 1})
        rows.measure("bad", fails)
        with path.open("a") as stream:
            stream.write('{"section": "a", "key": "ha')  # killed in the middle of a line
        text = path.read_text()
        path.write_text(text + "\n")
    assert sorted(tried) == ["fails", "fails", "good"]
    found = gpu_rows.read_rows(path)
    assert [row["key"] for row in found] == ["good", "bad", "bad"]
    assert found[1]["failed"] == "RuntimeError: CUDA out of memory"
    other = gpu_rows.Rows(path, "b", 60)
    assert not other.has("good")  # the other section's
    with pytest.raises(gpu_rows.BrokenDeviceError):
        other.measure("x", lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: illegal")))
    with pytest.raises(gpu_rows.OutOfTimeError):
        gpu_rows.Rows(path, "b", 0).measure("y", dict)


def test_a_section_that_hangs_is_ended(modules: Any, tmp_path: Path) -> None:
    campaign_module, gpu_rows = modules("gpu_campaign"), modules("gpu_rows")
    time = importlib.import_module("time")
    plan = gpu_rows.Plan("cuda", tmp_path)
    section = campaign_module.Section("hangs", 1, lambda plan, rows: time.sleep(60))
    start = time.monotonic()
    problem = campaign_module.wait_for(campaign_module.child(plan, section, 1), 1.0)
    assert problem == "stopped after 1 s"
    assert time.monotonic() - start < 10


def row(section: str, key: str, **figures: Any) -> dict[str, Any]:
    return {"section": section, "key": key, "at": "2027-01-02T03:04:05+00:00", **figures}


def warp(peer: str, median: float, dtype: str = "fp16") -> dict[str, Any]:
    figures = {"peer": peer, "dtype": dtype, "channels": 128, "width": 128}
    figures |= {"queries": 16384, "keys": 16384, "tflops": 400.0, "error": 1e-4}
    times = {"median": median, "graph": peer != "FlexAttention"}
    return row("kernels", f"x: {peer} {dtype}", **figures, milliseconds=times)


MACHINE = row(
    "probe",
    "machine",
    rehearsal=False,
    device="a made-up GPU",
    cores=16,
    driver="1.2",
    cudnn=9,
    versions={"torch": "9.9"},
)


def test_the_report_has_what_was_measured_and_nothing_else(modules: Any, tmp_path: Path) -> None:
    report = modules("gpu_report")
    shares = {"restore": 0.5, "similarity": 0.25, "colorize": 0.25}
    speed = {"network": "compact", "side": 512, "share": shares}
    rows = [
        MACHINE,
        row("kernels", "ceilings", fp16=800.0, copy=3000.0),
        warp("pikfix correlation_warp", 2.0),
        warp("FlexAttention", 3.0),
        row("networks", "a", failed="OutOfMemoryError: CUDA out of memory"),
        row("networks", "a", **speed, batch=8, photos_per_second=250.04, peak_bytes=2**31),
        row("networks", "b", failed="OutOfMemoryError: a | b"),
        row("networks", "c", working_side=1024, peak_bytes=2**30, limit_bytes=8 << 30)
        | {"network": "compact"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(found) + "\n" for found in rows))
    report.write_report(file, tmp_path / "results", "made-up")
    text = (tmp_path / "results" / "gpu-made-up.md").read_text()
    assert "# a made-up GPU" in text
    assert "2027-01-02; 16 cores; driver 1.2, cuDNN 9, torch 9.9" in text
    assert "fp16 product 800 TFLOP/s, copy 3.00 TB/s" in text
    own = "pikfix correlation_warp | fp16 | 2.000 | 400 | 50% | 1.0e-04 |"
    assert f"| 128, 128 | 16384 x 16384 | {own}" in text
    assert "FlexAttention (no graph)" in text
    assert "| 128, 128 | 16384 x 16384 | pikfix correlation_warp | 1.50 | - | - |" in text
    assert "| compact | 512 | 8 | 250.0 | 50% | 25% | 25% | 2.00 GiB |" in text
    assert "`compact`, working size 1024 x 1024: 1.00 GiB, under 8.00 GiB." in text
    assert "| networks | b | OutOfMemoryError: a / b |" in text
    assert "| networks | a |" not in text  # it went well in the end
    for absent in ("Tiles", "Parity", "server", "AOTInductor", "Gluon", "Kernels of"):
        assert absent not in text
    kept = json.loads((tmp_path / "results" / "gpu-made-up.json").read_text())
    assert len(kept) == 7
    assert (tmp_path / "results" / "gpu-made-up.png").stat().st_size > 5000


def test_tiles_and_packages_in_the_report(modules: Any) -> None:
    tile = {"milliseconds": {"median": 2.0}, "tile": {}}
    rows = [
        MACHINE,
        row("tiles", "forward C 256, D 128: 128 x 32", committed=True, **tile),
        row("tiles", "forward C 256, D 128: 128 x 64", committed=False)
        | {"milliseconds": {"median": 1.5}, "tile": {}},
        row("compile", "compile compact restore", compile_seconds=61.0),
        row("packages", "restore", load_seconds=1.0, max_abs=1e-4)
        | {"milliseconds": {"median": 3.0}},
        row("serve", "a", network="compact", side=512, clients=8, photos_per_second=120.0)
        | {"p50_ms": 60.0, "p95_ms": 80.0, "refused": 1, "photos": 959},
        row("parity", "p", network="paper", step="colorize", precision="fp16", psnr=60.0)
        | {"max_abs": 1e-3, "worst_tile": 1e-4, "against": "float64"},
    ]
    text = modules("gpu_report").markdown(rows)
    assert "| forward C 256, D 128 | 2.000 | 128 x 64 | 1.500 |" in text
    assert "| restore | 61 | 1.0 | 3.00 | 1.0e-04 |" in text
    assert "| compact | 512 | 8 at a time | 120.0 | 60 | 80 | 1 of 960 |" in text
    assert "| paper | colorize | fp16 | 60.0 dB | 1.0e-03 | 1.0e-04 | float64 |" in text


def gluon(columns: int, median: float, form: object, error: float = 2e-4) -> dict[str, Any]:
    key = f"forward C 128, D 128: 128 x {columns}, 2 stages, Gluon, {form} warpgroups"
    found = row("gluon", key, queries=16384, keys=16384, gluon=form, error=error, tile={})
    return found | {"committed": False, "milliseconds": {"median": median, "graph": True}}


def test_the_fastest_correct_gluon_form_is_what_peers_are_compared_with(modules: Any) -> None:
    wrong = row("gluon", "forward C 128, D 128: 128 x 16, Gluon", failed="ArithmeticError: error 1")
    other = gluon(32, 0.1, "separate") | {"keys": 4096}  # another problem: nobody else has it
    rows = [
        MACHINE,
        row("kernels", "ceilings", fp16=800.0, copy=3000.0),
        warp("FlexAttention", 0.3),
        warp("pikfix correlation_warp", 0.25),
        wrong,
        gluon(64, 0.225, "separate"),
        gluon(128, 0.2, "separate", error=1e-4),
        gluon(128, 0.21, "joint"),
        other,
    ]
    text = modules("gpu_report").markdown(rows)
    # 2 · (128 + 128) · 16384² operations in 0.2 ms are 687 TFLOP/s, 86 % of 800.
    assert "| 16384 x 16384 | pikfix, Gluon | fp16 | 0.200 | 687 | 86% | 1.0e-04 |" in text
    assert "| 128, 128 | 16384 x 4096 | pikfix, Gluon | fp16 | 0.100 | 344 | 43% |" in text
    assert text.count("| pikfix, Gluon | fp16 |") == 2
    assert "| 128, 128 | 16384 x 16384 | pikfix, Gluon | 1.50 | - | - |" in text
    # It stands with its problem, and the rows of the others stay.
    order = [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| 128, 128 |")]
    peers = ["FlexAttention (no graph)", "pikfix correlation_warp", "pikfix, Gluon"]
    assert order[:4] == [*peers, "pikfix, Gluon"]
    assert "random features" in text


def test_kernels_of_the_networks_in_the_report(modules: Any) -> None:
    names = [
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::(anonym",
        "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize256x32x32_warpgro",
        *(f"kernel {i} | {i}" for i in range(8)),
    ]
    listed = [{"name": n, "calls": 40 - i, "milliseconds": 8.0 - i} for i, n in enumerate(names)]
    rows = [
        MACHINE,
        row("networks", "kernels of paper fp16, 512 x 512, batch 8, restore", kernels=listed)
        | {"all_milliseconds": 40.0, "launches": 200},
        row("networks", "kernels of paper fp16, 512 x 512, batch 8, tone", kernels=[])
        | {"all_milliseconds": 0, "launches": 0},
    ]
    report = modules("gpu_report")
    text = report.markdown(rows)
    assert "512 x 512, batch 8." in text
    assert "| paper | restore | `CatArrayBatchedCopy_contig<(anonym` | 40 | 8.00 | 20% |" in text
    short = "sm90_xmma_fprop_implicit_gemm_tilesize256x32x32_warpgro"
    assert f"| paper | restore | `{short}` | 39 | 7.00 | 18% |" in text
    assert text.count("| paper | restore |") == 5
    assert "`kernel 2 / 2` | 36 | 4.00 | 10% |" in text
    assert "| paper | tone |" not in text
    assert len(report.short_name("x" * 100)) == 72


def test_where_a_photo_s_time_goes_in_the_server(modules: Any) -> None:
    def step(scale: float, runs: int) -> dict[str, Any]:
        phases = ("queue", "compute_input", "compute_infer", "compute_output")
        times = {f"{phase}_ms": scale * (i + 1) for i, phase in enumerate(phases)}
        return {"requests": 60, "runs": runs, **times}

    def load(clients: int, scale: float, **facts: Any) -> dict[str, Any]:
        names = ("colorize", "decode_photo", "encode_photo", "pikfix_photo", "restore", "new_step")
        steps = {name: step(scale, 60 if "photo" in name else 20) for name in names}
        figures = {"clients": clients, "busy_cores": clients / 3, "steps": steps, "side": 512}
        figures |= {"photos_per_second": 10.0, "p50_ms": 1.0, "p95_ms": 2.0, "photos": 60}
        return row("serve", f"{facts} {clients}", **figures, refused=0, **facts)

    rows = [
        MACHINE,
        load(64, 9.0, warming="compact"),
        load(8, 1.0, network="compact"),
        load(32, 2.0, network="compact"),
        load(1, 3.0, network="compact"),
    ]
    text = modules("gpu_report").markdown(rows)
    assert text.count("at a time |") == 3 and "64 at a time" not in text
    assert "`compact`, 32 at a time: 10.7 of 16 cores busy." in text
    lines = [line for line in text.splitlines() if line.endswith("| 2.0 | 4.0 | 6.0 | 8.0 |")]
    # In a photo's order, without the ensemble, and with what is not known to be on its way.
    assert [line.split(" | ")[1:3] for line in lines] == [
        ["decode_photo", "1.0"],
        ["restore", "3.0"],
        ["colorize", "3.0"],
        ["encode_photo", "1.0"],
        ["new_step", "3.0"],
    ]


def test_notes_lead_the_report_and_stay_in_its_rows(modules: Any, tmp_path: Path) -> None:
    rows = [MACHINE | {"interpreter": "/a/python3"}, row("serve", "a", server="/a/tritonserver")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(found) + "\n" for found in rows))
    words = ("--report", "made-up", "--results", tmp_path, "--note", "One try.", "--note", "Two.")
    done = campaign(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    head = (tmp_path / "gpu-made-up.md").read_text()
    assert head.endswith("is marked.\n\n- One try.\n- Two.\n")
    text = (tmp_path / "gpu-made-up.json").read_text()
    assert "/a/" not in text  # where things lay on that machine
    rows = json.loads(text)
    assert modules("gpu_report").markdown(rows) == head


def test_candidates_are_what_the_kernels_take(modules: Any) -> None:
    from pikfix.kernels import tiles

    kernels = modules("gpu_kernels")
    hopper, ampere = (
        next(table for table in tiles.tables() if table.capability == c) for c in (90, 80)
    )
    tile = hopper.find("forward", 128, 128, 2)
    found = list(kernels.gluon_candidates(tile, 90))
    assert {(c.tile.rows, c.tile.num_warps, c.gluon) for c in found} == {(128, 8, True)}
    committed = hopper.find("gluon", 128, 128, 2)
    shapes = {(c.tile.columns, c.tile.num_stages) for c in found}
    assert (committed.columns, committed.num_stages) in shapes
    for candidate in found:
        ring = candidate.tile.num_stages * candidate.tile.columns * (128 + 128) * 2
        assert ring <= hopper.shared_memory
    assert found[0].words == "128 x 64, 2 stages, Gluon"
    assert not list(kernels.gluon_candidates(ampere.find("forward", 128, 128, 2), 80))
    assert not list(kernels.gluon_candidates(hopper.find("forward", 256, 512, 2), 90))
    first, *others = kernels.candidates(tile, 90)
    assert first == kernels.Candidate(tile)
    assert len(set(others)) == len(others) and first not in others
    assert any(other.words.endswith(", descriptors") for other in others)


def test_graphs_and_peers_are_asked_for_by_names_that_exist(modules: Any) -> None:
    """A peer whose name changes would be a row that says it is not on the machine."""
    kernels, peers = modules("gpu_kernels"), modules("kernels_peers")
    problem = modules("kernels").make_problem(16, 16, 64, "random", "cpu")
    rows = modules("gpu_rows")
    wanted = set(kernels._names(rows.Plan("cpu", Path())))
    found = set()
    for family in peers.peers(problem, 1):
        try:
            found |= {f"{peer.name} {peer.dtype}" for peer in family()}
        except (ImportError, RuntimeError, ValueError):
            continue
    assert wanted <= found
    source = (ROOT / "benchmarks" / "kernels_peers.py").read_text()
    for name in kernels._names(rows.Plan("cuda", Path())):
        known = name.rsplit(" ", 1)[0].removesuffix(", max pass").removesuffix(", padded")
        known = "SDPA {name}, padded" if known.startswith("SDPA") else known
        assert known in source, name


def test_candidate_forms_compute_what_the_served_form_does(modules: Any) -> None:
    """With several units; in float32 what is summed in another order differs in the last digits."""
    torch = importlib.import_module("torch")
    forms, served = modules("gpu_forms"), importlib.import_module("pikfix.inference.forms")
    blocks = importlib.import_module("pikfix.layers.blocks")
    torch.manual_seed(0)
    block = served.LeanResidualDenseBlock(blocks.ResidualDenseBlock(6, 3, 4), 4)
    block = block.to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 9, 11).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = block(x)
        for form in forms.forms_on("cpu"):
            found = forms.FORMS[form](block)(x)
            assert (found - expected).abs().max() < 1e-5, form
    assert set(forms.FORMS) - set(forms.forms_on("cpu")) == {"fused"}
