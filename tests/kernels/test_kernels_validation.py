import pytest
import torch

from pikfix.kernels import center_normalize, correlation_warp, sphist

Q, K, V = torch.zeros(2, 5, 8), torch.zeros(2, 7, 8), torch.zeros(2, 7, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((Q[0], K, V, 0.01), r"\[5, 8\]"),
        ((Q, K[..., :4], V, 0.01), r"\[2, 7, 4\]"),
        ((Q, K, V[:, :6], 0.01), r"\[2, 6, 3\]"),
        ((Q, K, V[:1], 0.01), r"\[1, 7, 3\]"),
        ((Q.int(), K, V, 0.01), "int32"),
        ((Q, K.bfloat16(), V, 0.01), "bfloat16"),
        ((Q, K.to("meta"), V, 0.01), "on meta"),
        ((Q, K, [1.0], 0.01), "list"),
        ((Q[:0], K[:0], V[:0], 0.01), r"\[0, 5, 8\]"),
        ((Q, K, V, 0.0), "temperature = 0.0"),
        ((Q, K, V, -0.01), "temperature = -0.01"),
        ((Q, K, V, float("nan")), "temperature = nan"),
        ((Q, K, V, True), "temperature = True"),
        ((Q, K, V, 0.01, torch.ones(2, 7)), r"\[2, 7\] float32"),
        ((Q, K, V, 0.01, torch.ones(2, 5, dtype=torch.bool)), r"\[2, 5\] bool"),
        ((Q, K, V, 0.01, torch.ones(2, 7, dtype=torch.bool, device="meta")), "on meta"),
    ],
)
def test_correlation_warp_names_what_it_got(arguments, named):
    with pytest.raises(ValueError, match=f"correlation_warp: expected .*{named}"):
        correlation_warp(*arguments)


AB = torch.zeros(1, 2, 4, 6)
CENTRES = torch.linspace(-1, 1, 5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((AB[0], CENTRES, 0.1), r"\[2, 4, 6\]"),
        ((AB[:, :1], CENTRES, 0.1), r"\[1, 1, 4, 6\]"),
        ((AB.long(), CENTRES, 0.1), "int64"),
        ((AB[:0], CENTRES, 0.1), r"\[0, 2, 4, 6\]"),
        ((AB, CENTRES[:0], 0.1), r"\[0\]"),
        ((AB, CENTRES.expand(3, 5), 0.1), r"\[3, 5\]"),
        ((AB, CENTRES.to("meta"), 0.1), "on meta"),
        ((AB, CENTRES, 0.0), "sigma = 0.0"),
        ((AB, CENTRES, float("inf")), "sigma = inf"),
        ((AB, CENTRES, 0.1, 0), "pool = 0"),
        ((AB, CENTRES, 0.1, 4), r"\[1, 2, 4, 6\]"),
        ((AB, CENTRES, 0.1, 2.0), "pool = 2.0"),
    ],
)
def test_sphist_names_what_it_got(arguments, named):
    with pytest.raises(ValueError, match=f"sphist: expected .*{named}"):
        sphist(*arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((Q[0],), r"\[5, 8\]"),
        ((Q.int(),), "int32"),
        ((Q[:, :0],), r"\[2, 0, 8\]"),
        ((Q, 0.0), "eps = 0.0"),
        (("photo",), "str"),
    ],
)
def test_center_normalize_names_what_it_got(arguments, named):
    with pytest.raises(ValueError, match=f"center_normalize: expected .*{named}"):
        center_normalize(*arguments)
