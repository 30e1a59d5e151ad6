"""Tiling arithmetic and exactness of the onnxruntime backend, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from backend_files import load_backend
from hypothesis import given, settings
from hypothesis import strategies as st

from pikfix.serving import embedded


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    """The backend's file, with Triton's own module from the wheel."""
    return load_backend(embedded.BACKENDS / "onnxruntime/model.py")


def network_step(backend: ModuleType) -> ModuleType:
    """What the backends share: its module, which can be imported beside Triton's own alone."""
    return sys.modules[backend.NetworkStep.__module__]


@settings(deadline=None)  # other work on the machine decides how long an example takes
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    halo=st.integers(0, 40),
    align=st.sampled_from([8, 32]),
    room=st.integers(1, 60_000),
)
def test_every_place_is_kept_once(backend, *, height, width, halo, align, room):
    margin = -(-halo // align) * align
    tiling = network_step(backend).Tiling((align + 2 * margin) ** 2 + room, halo, align)
    kept = np.zeros((height, width), int)
    for rows, columns, tile_rows, tile_columns in tiling.plan(height, width):
        kept[rows, columns] += 1
        tile_h, tile_w = tile_rows.stop - tile_rows.start, tile_columns.stop - tile_columns.start
        assert tile_h * tile_w <= tiling.pixels
        assert tile_rows.start % align == 0 and tile_columns.start % align == 0
        # The margin is there on every side that is not the picture's own edge.
        assert rows.start - tile_rows.start >= halo or tile_rows.start == 0
        assert columns.start - tile_columns.start >= halo or tile_columns.start == 0
        assert tile_rows.stop - rows.stop >= halo or tile_rows.stop == height
        assert tile_columns.stop - columns.stop >= halo or tile_columns.stop == width
    assert (kept == 1).all()


def test_plan_wastes_little_on_the_largest_photo(backend):
    """2016 x 3008 in tiles of 2 megapixels with the real halo: under 1.5 times the work."""
    tiling = network_step(backend).Tiling(2_000_000, 128, 32)
    work = sum((r.stop - r.start) * (c.stop - c.start) for _, _, r, c in tiling.plan(2016, 3008))
    assert work < 1.5 * 2016 * 3008


@pytest.fixture(scope="module")
def restore(toy_repository: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(toy_repository / "restore/1/model.onnx"))


def tiled_and_whole(backend, restore, halo):
    image = np.random.default_rng(3).uniform(-1, 1, (2, 1, 200, 176)).astype(np.float32)

    def run(tile):
        return restore.run(["repaired_l"], {"photo_l": tile})[0]

    tiling = network_step(backend).Tiling(80 * 80, halo, 8)
    return network_step(backend).run_tiled(run, image, tiling), run(image)


def test_tiles_with_the_receptive_field_as_halo_are_exact(backend, restore):
    tiled, whole = tiled_and_whole(backend, restore, 24)
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


def test_tiles_with_too_small_a_halo_are_not(backend, restore):
    """What the halo is for: without one the seams show, far above the tolerance."""
    tiled, whole = tiled_and_whole(backend, restore, 0)
    assert np.abs(tiled - whole).max() > 1e-2


def test_every_photo_of_a_batch_is_tiled_by_itself(backend, exported):
    version = exported[0] / "restore" / "1"
    image = np.random.default_rng(3).uniform(-0.8, 0.8, (2, 1, 352, 608)).astype(np.float32)
    image[0, ..., :300] -= 0.1
    image[1, ..., 300:] *= 0.2
    names = {"tile_pixels": 100_000, "tile_halo": 128, "tile_align": 32}
    config = {"parameters": {k: {"string_value": str(v)} for k, v in names.items()}}
    network = backend.Network(config, version, "CPU", 0)
    tiled = network.run({"filled_l": image}, ["repaired_l"])["repaired_l"]
    session = onnxruntime.InferenceSession(version / "model.onnx")
    (whole,) = session.run(["repaired_l"], {"filled_l": image})
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    assert np.abs(whole - image).max() > 1e-2  # there was something to repair


def test_a_file_that_sets_the_tone_of_tiles_is_refused(backend, exported):
    """As earlier versions wrote `restore`: what its tiles show is not what the photo shows."""
    names = {"tile_pixels": 100_000, "tile_halo": 128, "tile_align": 32}
    config = {"parameters": {k: {"string_value": str(v)} for k, v in names.items()}}
    with pytest.raises(ValueError, match="several outputs in tiles; run `pikfix export` again"):
        backend.Network(config, exported[0] / "tone" / "1", "CPU", 0)


def test_output_of_another_size_cannot_be_tiled(backend):
    image = np.zeros((1, 1, 64, 64), np.float32)
    with pytest.raises(network_step(backend).StepError, match="only an output of the input's size"):
        network_step(backend).run_tiled(
            lambda tile: tile[..., ::2, ::2], image, network_step(backend).Tiling(32 * 32, 0, 8)
        )


def test_tile_too_small_for_its_halo_is_refused(backend):
    with pytest.raises(ValueError, match=r"needs at least 82944"):
        network_step(backend).Tiling(10_000, 128, 32)


def test_threads_are_shared_among_instances(backend, monkeypatch):
    monkeypatch.setattr(network_step(backend), "available_cores", lambda: 8)
    config = {"instance_group": [{"count": 2}, {"count": 1}]}
    assert backend.session_options(config).intra_op_num_threads == 2
    config["parameters"] = {"intra_op_thread_count": {"string_value": "5"}}
    assert backend.session_options(config).intra_op_num_threads == 5
    config["parameters"] = {"intra_op_thread_count": {"string_value": "many"}}
    with pytest.raises(ValueError, match="intra_op_thread_count must be an integer"):
        backend.session_options(config)


def test_instances_on_every_gpu_count(backend, monkeypatch):
    monkeypatch.setattr(network_step(backend), "available_cores", lambda: 8)
    config = {"instance_group": [{"count": 1, "gpus": [0, 1, 2, 3]}]}
    assert backend.session_options(config).intra_op_num_threads == 2


def test_provider_follows_the_instance_and_the_build(backend, monkeypatch):
    cpu, gpu = "CPUExecutionProvider", "CUDAExecutionProvider"
    monkeypatch.setattr(backend.ort, "get_available_providers", lambda: [gpu, cpu])
    assert backend.providers("CPU", 0) == [cpu]
    assert backend.providers("GPU", 3) == [(gpu, {"device_id": 3}), cpu]
    monkeypatch.setattr(backend.ort, "get_available_providers", lambda: [cpu])
    assert backend.providers("GPU", 0) == [cpu]


def test_free_memory_is_returned_now_and_then(backend, monkeypatch):
    step_module = network_step(backend)
    clock, returned = [1000.0], []
    monkeypatch.setattr(step_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(step_module, "return_free_memory", lambda: returned.append(clock[0]))

    class Nothing:
        inputs: tuple[str, ...] = ()
        outputs: tuple[str, ...] = ()

    step = step_module.NetworkStep()
    step.set_up({"model_name": "step"}, {"input": [], "output": []}, Nothing())
    for clock[0] in (1001.0, 1029.0, 1031.0, 1032.0, 1060.0, 1062.0):
        assert step.execute([]) == []
    assert returned == [1031.0, 1062.0]
