"""The warp in Gluon as machine code for sm_90, which needs no GPU: it has no interpreter.

Also which problems it takes; test_kernels_gpu.py holds its results against float64.
"""

import dataclasses
import importlib.util
import re
import subprocess

import pytest
import torch

from pikfix.kernels import tiles

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
COMMITTED = [
    (table, tile) for table in tiles.tables() for tile in table.tiles if tile.kernel == "gluon"
]


HOPPER = next(table for table in tiles.tables() if table.capability == 90)


def test_there_are_tiles_to_check():
    assert {table.capability for table, _ in COMMITTED} == {90}


@pytest.mark.parametrize("element", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("table", "tile"), COMMITTED, ids=[f"C{tile.channels}-D{tile.width}" for _, tile in COMMITTED]
)
def test_copies_products_and_exponentials_overlap(table, tile, element, tmp_path):
    from pikfix.kernels import cross_compile

    (job,) = (job for job in cross_compile.jobs_of(table, tile) if f"-{element}-" in job.name)
    compiled = cross_compile.compile_kernel(job)
    assert compiled.metadata.shared <= table.shared_memory <= 227 * 1024
    ptx = compiled.asm["ptx"]
    assert "cp.async.bulk.tensor.2d.shared" in ptx
    # Registers move from the copying warp to the multiplying ones.
    assert "setmaxnreg.inc" in ptx and "setmaxnreg.dec" in ptx

    steps = {"wgmma.mma_async": "product", "ex2.approx": "exponential", "wgmma.wait_group": "wait"}
    order = [what for line in ptx.splitlines() for op, what in steps.items() if op in line]
    # Two warpgroups with code of their own, one after the other in the text.
    half = len(order) // 2
    assert order[:half] == order[half:]
    order = order[:half]
    runs = [what for i, what in enumerate(order) if i == 0 or order[i - 1] != what]
    # The first tile's correlations; then, in the loop, those of the next tile, softmax of this
    # one and its values, with no wait before; then the last tile's softmax and values.
    first, loop = ["product", "wait"], ["product", "exponential", "product", "wait"]
    assert runs == first + loop + loop[1:]
    # Correlations and sums twice, for the first or last tile and in the loop, of 16 at a time.
    assert order.count("product") == 2 * (tile.channels // 16) + 2 * (tile.columns // 16)
    # Half of the rows by the columns, over the 128 threads of a warpgroup, with two rows each.
    assert order.count("exponential") == 2 * (tile.rows // 2 * tile.columns // 128 + 2)
    assert order.count("wait") == 3
    # The queries are in registers: the left operand is no address of shared memory.
    for product in (line for line in ptx.splitlines() if "wgmma.mma_async" in line):
        assert re.search(r"\},\s*\{", product), product

    (tmp_path / "warp.ptx").write_text(ptx)
    target = re.search(r"\.target (\w+)", ptx)[1]
    done = subprocess.run(
        [
            cross_compile._BINARIES / "ptxas",
            *("-v", f"-arch={target}"),
            *(tmp_path / "warp.ptx", "-o", tmp_path / "warp.cubin"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", done.stderr), done.stderr
    assert "serialized" not in done.stderr, done.stderr


@pytest.mark.parametrize(("channels", "width"), [(16, 16), (32, 48), (256, 16)])
def test_sizes_below_a_tile_s_compile_too(channels, width):
    from pikfix.kernels import cross_compile

    tile = HOPPER.find("gluon", channels, width, 2)
    block_d = min(tiles.padded(width), tile.chunk)
    small = dataclasses.replace(tile, channels=channels, width=width, chunk=block_d)
    for job in cross_compile.jobs_of(HOPPER, small):
        report = cross_compile.compile_job(job)
        assert report.wgmma and report.spilled == 0, report
        assert report.shared <= report.shared_limit, report


class OnGpu:
    """What a tensor on a GPU tells before a launch."""

    is_cuda = True

    def __init__(self, *shape, dtype=torch.float16):
        self.shape, self.dtype = torch.Size(shape), dtype

    def numel(self):
        return self.shape.numel()

    def element_size(self):
        return self.dtype.itemsize


BATCH, QUERIES, KEYS, CHANNELS, WIDTH = 1, 16384, 4096, 128, 64


def found(
    batch=BATCH,
    queries=QUERIES,
    keys=KEYS,
    channels=CHANNELS,
    width=WIDTH,
    *,
    table=HOPPER,
    dtype=torch.float16,
    mask=None,
    make=OnGpu,
):
    from pikfix.kernels import correlation_warp_gluon

    shapes = ((batch, queries, channels), (batch, keys, channels), (batch, keys, width))
    tensors = (make(*shape, dtype=dtype) for shape in shapes)
    return correlation_warp_gluon.tile_for(*tensors, mask, table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "width", "covered"),
    [(16, 16, (64, 64)), (128, 64, (128, 128)), (256, 64, (256, 64)), (256, 112, (256, 128))],
)
def test_it_takes_half_precision_by_the_smallest_tile_that_covers_it(
    channels, width, covered, dtype
):
    tile = found(channels=channels, width=width, dtype=dtype)
    assert tile.kernel == "gluon"
    assert (tile.channels, tile.width) == covered


@pytest.mark.parametrize(
    "problem",
    [
        {"mask": torch.ones(1, KEYS, dtype=torch.bool)},
        {"dtype": torch.float32},
        {"dtype": torch.float64},
        {"channels": 8},
        {"channels": 96},
        {"channels": 512},
        {"width": 40},
        {"width": 512},
        {"queries": 2**24 + 1},  # its tensors are counted in 32 bits
        {"table": next(table for table in tiles.tables() if table.capability == 80)},
        {"make": torch.empty},  # on the CPU
    ],
    ids=lambda problem: "-".join(map(str, problem)),
)
def test_it_leaves_what_it_cannot_take(problem):
    assert found() is not None
    assert found(**problem) is None


def test_it_leaves_work_that_does_not_fill_the_gpu():
    """A split over the keys does, which it has not: 132 multiprocessors, 128 queries a program."""
    assert found(queries=64 * 64, keys=64 * 64) is None
    assert found(batch=8, queries=64 * 64, keys=64 * 64) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_forward_pass_goes_to_it_exactly_where_it_takes_the_problem(monkeypatch, dtype):
    from pikfix.kernels import correlation_warp_gluon, correlation_warp_triton

    launched = []

    def tile_for(query, *others):
        return HOPPER.find("gluon", 64, 64, 2) if query.dtype == torch.float16 else None

    def forward(query, key, values, temperature, *, tile):
        launched.append((query.shape, values.shape, temperature, tile.kernel))
        return values.new_zeros(1, 33, 48), values.new_zeros(1, 33), values.new_zeros(1, 33)

    class Triton:
        def __getitem__(self, grid):
            return lambda **arguments: launched.append("Triton")

    monkeypatch.setattr(correlation_warp_gluon, "tile_for", tile_for)
    monkeypatch.setattr(correlation_warp_gluon, "forward", forward)
    for kernel in ("forward_kernel", "merge_kernel"):
        monkeypatch.setattr(correlation_warp_triton, kernel, Triton())
    shapes = ((1, 33, 64), (1, 70, 64), (1, 70, 40))
    tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    warped, _, _ = correlation_warp_triton.forward(*tensors, 0.01, None)
    assert warped.shape == (1, 33, 40)  # what was added to the width is cut off
    if dtype == torch.float16:
        assert launched == [((1, 33, 64), (1, 70, 48), 0.01, "gluon")]
        launched.clear()
        # Its results are in half precision, and it knows no split.
        for asked in ({"fp32_output": True}, {"splits": 2}):
            correlation_warp_triton.forward(*tensors, 0.01, None, **asked)
    assert launched and set(launched) == {"Triton"}
