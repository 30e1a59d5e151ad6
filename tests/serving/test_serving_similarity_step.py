"""The python similarity step without a server: precision, whole batches, failures."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pikfix.export.runtimes.kernel_step import _STEP
from pikfix.systems.pikfix.networks import load_checkpoint


class FakeTensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        assert values.flags.c_contiguous and values.dtype == np.float32
        self.name, self.values = name, torch.from_numpy(values)

    def as_numpy(self) -> np.ndarray:
        return self.values.numpy()


class FakeRequest:
    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.text = ""

    def parameters(self) -> str:
        return self.text


class FakeError(Exception):
    INVALID_ARG, INTERNAL, CANCELLED = "invalid", "internal", "cancelled"

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor], error: FakeError | None = None) -> None:
        self.outputs = {tensor.name: tensor.values for tensor in output_tensors}
        self.error = error


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path) -> Any:
    """A function that makes the step with a precision."""
    fake = types.ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.InferenceResponse, fake.TritonError = FakeTensor, FakeResponse, FakeError  # type: ignore[attr-defined]
    fake.Logger = types.SimpleNamespace(log_error=lambda text: None)  # type: ignore[attr-defined]
    fake.get_input_tensor_by_name = lambda request, name: FakeTensor(
        name, request.tensors[name].numpy()
    )  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    threads = torch.get_num_threads()
    (tmp_path / "1").mkdir()
    shutil.copyfile(checkpoint, tmp_path / "1" / "checkpoint.safetensors")

    def make(precision: str | None, kind: str = "CPU") -> Any:
        module = types.ModuleType("similarity_step")
        exec(compile(_STEP.read_text(), str(_STEP), "exec"), module.__dict__)
        model = module.TritonPythonModel()
        parameters = {} if precision is None else {"precision": {"string_value": precision}}
        model.initialize(
            {
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_name": "similarity",
                "model_config": json.dumps({"parameters": parameters}),
            }
        )
        return model

    yield make
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def similarity_of(model: Any) -> Any:
    return model.network.network.similarity


def request(seed: int, batch: int, references: int, sides: tuple[int, int] = (64, 96)) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return FakeRequest(
        working_l=torch.rand(batch, 1, *sides, generator=generator) * 2 - 1,
        reference_lab=torch.rand(batch, references, 3, 32, 64, generator=generator) * 2 - 1,
    )


def expected(checkpoint: Path, asked: FakeRequest) -> dict[str, Tensor]:
    with torch.no_grad():
        warped, confidence, share = load_checkpoint(checkpoint).similarity.with_share(
            *asked.tensors.values()
        )
    named = {f"warped_{i}": value for i, value in enumerate(warped, 1)}
    named |= {f"confidence_{i}": value for i, value in enumerate(confidence, 1)}
    return named | {"reference_share": share}


@pytest.mark.parametrize(
    ("precision", "dtype", "limit"),
    [
        (None, torch.float32, 1e-5),
        ("fp32", torch.float32, 1e-5),
        ("fp16", torch.float32, 1e-5),  # on a CPU
        ("bf16", torch.bfloat16, 0.1),
    ],
)
def test_it_computes_in_the_precision_that_was_asked_for(
    step: Any, checkpoint: Path, precision: str | None, dtype: torch.dtype, limit: float
) -> None:
    model = step(precision)
    assert similarity_of(model).filter.weight.dtype == dtype
    asked = request(0, 2, 3)
    (answer,) = model.execute([asked])
    assert answer.error is None
    for name, wanted in expected(checkpoint, asked).items():
        given = answer.outputs[name]
        assert given.shape == wanted.shape
        error = float((given - wanted).norm() / wanted.norm())
        assert error <= limit, (name, error)
        if precision == "bf16":
            assert error > 0 or name == "reference_share"


def test_another_precision_is_refused_by_name(step: Any) -> None:
    with pytest.raises(ValueError, match="fp32, fp16, bf16, not in 'int7'"):
        step("int7")


def test_requests_of_equal_shapes_are_one_run_and_each_gets_its_own_answer(
    step: Any, checkpoint: Path
) -> None:
    model = step("fp32")
    runs = []
    whole = similarity_of(model).with_share

    def counted(*inputs: Tensor) -> Any:
        runs.append(inputs[0].shape[0])
        return whole(*inputs)

    similarity_of(model).with_share = counted
    asked = [request(1, 1, 2), request(2, 2, 2), request(3, 1, 3), request(4, 1, 2, (32, 32))]
    asked.append(request(5, 1, 2))
    answers = model.execute(asked)
    assert sorted(runs) == [1, 1, 4]
    for one, answer in zip(asked, answers, strict=True):
        for name, wanted in expected(checkpoint, one).items():
            # Batches are summed in another order; a softmax at 0.03 multiplies the last digits.
            np.testing.assert_allclose(answer.outputs[name], wanted, atol=1e-4)


def test_a_bad_request_fails_alone(step: Any) -> None:
    model = step("fp32")
    bad, uneven, late = request(1, 1, 2), request(2, 1, 2), request(3, 1, 2)
    bad.tensors["working_l"][0, 0, 3, 3] = torch.nan
    uneven.tensors["reference_lab"] = uneven.tensors["reference_lab"].repeat(2, 1, 1, 1, 1)
    late.text = '{"deadline_unix_ms": 1}'
    answers = model.execute([bad, request(4, 1, 2), uneven, late])
    assert [a.error is None for a in answers] == [False, True, False, False]
    assert "NaN or infinity" in str(answers[0].error) and answers[0].error.code == "invalid"
    assert "must agree in batch size, got [1, 2]" in str(answers[2].error)
    assert answers[3].error.code == "cancelled"


def test_a_failing_run_is_the_answer_to_all_of_its_group(step: Any) -> None:
    model = step("fp32")

    def fails(*_: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    similarity_of(model).with_share = fails
    answers = model.execute([request(1, 1, 2), request(2, 1, 2)])
    for answer in answers:
        assert "OutOfMemoryError" in str(answer.error) and answer.error.code == "internal"


def test_the_warm_up_takes_a_small_and_a_large_picture(step: Any) -> None:
    model = step("fp32")
    sides = []
    whole = similarity_of(model).with_share

    def noted(*inputs: Tensor) -> Any:
        sides.append(inputs[0].shape[-1])
        return whole(*inputs)

    similarity_of(model).with_share = noted
    model.warm_up()
    assert sides == [32, 256]
