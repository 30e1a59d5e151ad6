"""The bookkeeping of recorded networks, with the stand-in that a CPU has for CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pikfix.serving.graphs import GraphCache, Named, Repeated, SharedPool, recorder

LARGEST = 1000


class Recorder:
    """Counts recordings, and keeps them for the test to look at."""

    def __init__(self) -> None:
        self.made: list[Repeated] = []

    def __call__(self, function: object, inputs: Mapping[str, torch.Tensor]) -> Repeated:
        self.made.append(Repeated(function, inputs))  # type: ignore[arg-type]
        return self.made[-1]


def double(inputs: Named) -> Named:
    return {"y": inputs["x"] * 2}


def x(value: float, *shape: int) -> Named:
    return {"x": torch.full(shape or (2, 3), value)}


@pytest.fixture
def record() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(record: Recorder) -> GraphCache:
    return GraphCache(record, limit=2, largest=LARGEST)


def test_a_shape_is_recorded_the_second_time_and_replayed_from_then_on(
    cache: GraphCache, record: Recorder
) -> None:
    for number, value in enumerate((1.0, 2.0, 3.0, 4.0)):
        assert torch.equal(cache.run("f", double, x(value))["y"], torch.full((2, 3), 2 * value))
        assert len(record.made) == (number > 0)


def test_another_shape_type_or_function_is_another_recording(
    cache: GraphCache, record: Recorder
) -> None:
    wide = {"x": torch.ones(2, 3, dtype=torch.float64)}
    for name, inputs in (("f", x(1)), ("g", x(1)), ("f", x(1, 3, 2)), ("f", wide)):
        for _ in range(2):
            cache.run(name, double, inputs)
    assert len(record.made) == 4
    assert [r.inputs["x"].dtype for r in record.made][3] == torch.float64


def test_the_least_recently_used_goes(cache: GraphCache, record: Recorder) -> None:
    for shape in ((1,), (2,), (1,), (3,)):  # 2 is the oldest when 3 comes
        for _ in range(2):
            cache.run("f", double, x(1, *shape))
    assert len(cache) == 2
    assert len(record.made) == 3
    cache.run("f", double, x(1, 1))
    assert len(record.made) == 3
    cache.run("f", double, x(1, 2))
    assert len(record.made) == 4


def test_large_shapes_are_never_recorded(cache: GraphCache, record: Recorder) -> None:
    for _ in range(5):
        cache.run("f", double, x(1, LARGEST + 1))
    assert not record.made
    for _ in range(2):
        cache.run("f", double, x(1, LARGEST))
    assert len(record.made) == 1


def test_inputs_are_copied_and_left_as_they_are(cache: GraphCache, record: Recorder) -> None:
    given = [x(value) for value in (1.0, 2.0, 3.0)]
    for inputs in given:
        cache.run("f", double, inputs)
    static = record.made[0].inputs["x"]
    assert all(inputs["x"].data_ptr() != static.data_ptr() for inputs in given)
    assert [float(inputs["x"][0, 0]) for inputs in given] == [1.0, 2.0, 3.0]


def test_an_answer_outlives_the_next_replay(cache: GraphCache, record: Recorder) -> None:
    answers = [cache.run("f", double, x(value))["y"] for value in (1.0, 2.0, 3.0, 4.0)]
    assert [float(answer[0, 0]) for answer in answers] == [2.0, 4.0, 6.0, 8.0]
    assert len({answer.data_ptr() for answer in answers}) == 4
    assert record.made[0].outputs["y"].data_ptr() not in {a.data_ptr() for a in answers}


def test_what_cannot_be_recorded_runs_all_the_same() -> None:
    tried: list[int] = []
    lines: list[str] = []

    def refuse(function: object, inputs: object) -> Repeated:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    cache = GraphCache(refuse, 2, LARGEST, lines.append)
    for value in (1.0, 2.0, 3.0):
        assert float(cache.run("f", double, x(value))["y"][0, 0]) == 2 * value
    assert len(tried) == 1
    assert lines == ["f runs without a graph: operation not permitted when stream is capturing"]


def test_running_out_of_memory_while_recording_is_not_hidden() -> None:
    def exhausted(function: object, inputs: object) -> Repeated:
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = GraphCache(exhausted, 2, LARGEST)
    cache.run("f", double, x(1))
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("f", double, x(1))


def test_cleared_recordings_are_made_again(cache: GraphCache, record: Recorder) -> None:
    for _ in range(2):
        cache.run("f", double, x(1))
    cache.clear()
    assert len(cache) == 0
    for expected in (1, 2):
        cache.run("f", double, x(1))
        assert len(record.made) == expected


def test_no_graphs_where_none_are_wanted(record: Recorder) -> None:
    cache = GraphCache(record, 0, LARGEST)
    for _ in range(3):
        cache.run("f", double, x(1))
    assert not record.made


def test_a_cpu_repeats() -> None:
    assert recorder(torch.device("cpu")) is Repeated


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_graphs_give_what_the_function_gives() -> None:
    cache = GraphCache(recorder(torch.device("cuda")), 4, 1 << 20)
    layer = torch.nn.Conv2d(1, 8, 3, padding=1).cuda().half().eval()

    def convolve(inputs: Named) -> Named:
        return {"y": layer(inputs["x"])}

    with torch.inference_mode():
        for size in (16, 24):
            for seed in range(4):
                torch.manual_seed(seed)
                given = {"x": torch.randn(2, 1, size, size, device="cuda").half()}
                expected = layer(given["x"])
                answer = cache.run("f", convolve, given)["y"]
                assert torch.allclose(answer, expected, atol=2e-3)
    assert len(cache) == 2


def test_a_pool_is_renewed_once_its_last_graph_has_gone() -> None:
    class Graph:
        pass

    made = iter("abc")
    pool = SharedPool(lambda: next(made))
    first = Graph()
    assert pool.handle() == "a"
    pool.add(first)
    second = Graph()
    assert pool.handle() == "a"
    pool.add(second)
    del first
    assert pool.handle() == "a"
    del second
    assert pool.handle() == "b"
