"""The warp in Gluon as machine code for sm_90: it has no interpreter, and no GPU is here."""

import importlib.util
import re
import subprocess

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def compile_for_hopper(channels, width, columns, stages, separate=True):
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from pikfix.kernels import correlation_warp_gluon as module

    sizes = {"C": channels, "D": width, "BLOCK_N": 128, "BLOCK_M": columns, "BLOCK_D": width}
    constants = sizes | {"STAGES": stages, "SEPARATE": separate}
    boxes = module.layouts(gl.float16, columns, channels, width)
    kinds = dict.fromkeys(constants, "constexpr") | {"N": "i32", "M": "i32", "scale": "fp32"}
    kinds |= dict.fromkeys(("p_query", "p_warped"), "*fp16")
    kinds |= dict.fromkeys(("p_confidence", "p_logsumexp"), "*fp32")
    kinds["d_key"] = f"tensordesc<fp16[{columns}, {channels}],{boxes[0]!r}>"
    kinds["d_values"] = f"tensordesc<fp16[{columns}, {width}],{boxes[1]!r}>"
    names = module.warp_kernel.arg_names
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name[:2] == "p_"}
    signature = {name: kinds[name] for name in names}
    return compile_kernel(
        GluonASTSource(module.warp_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": module.num_warps(separate)},
    )


@pytest.mark.parametrize(
    ("channels", "width", "columns", "stages"), [(128, 128, 64, 3), (256, 128, 64, 2)]
)
def test_copies_products_and_exponentials_overlap(channels, width, columns, stages, tmp_path):
    from pikfix.kernels import cross_compile

    compiled = compile_for_hopper(channels, width, columns, stages)
    assert compiled.metadata.shared <= 227 * 1024
    ptx = compiled.asm["ptx"]
    assert "cp.async.bulk.tensor.2d.shared" in ptx
    # Registers move from the copying warp to the multiplying ones.
    assert "setmaxnreg.inc" in ptx and "setmaxnreg.dec" in ptx

    steps = {"wgmma.mma_async": "product", "ex2.approx": "exponential", "wgmma.wait_group": "wait"}
    order = [what for line in ptx.splitlines() for op, what in steps.items() if op in line]
    runs = [what for i, what in enumerate(order) if i == 0 or order[i - 1] != what]
    # The first tile's correlations; then, in the loop, those of the next tile, softmax of this
    # one and its values, with no wait before; then the last tile's softmax and values.
    first, loop = ["product", "wait"], ["product", "exponential", "product", "wait"]
    assert runs == first + loop + loop[1:]
    # The queries are in registers: the left operand is no address of shared memory.
    correlations = channels // 16
    products = [line for line in ptx.splitlines() if "wgmma.mma_async" in line]
    assert len(products) == 2 * correlations + 2 * (columns // 16)
    for product in products:
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
