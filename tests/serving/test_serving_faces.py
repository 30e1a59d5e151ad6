"""Faces are drawn by the last step, with the server's own generator where it has one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tritonclient import grpc

from pikfix.export import export_checkpoint
from pikfix.export.configs import fixed_configs
from pikfix.export.repository import write_fixed_configs
from pikfix.photos import PhotoError
from pikfix.serving.server import start_server
from pikfix.systems.checkpoint import load, save_checkpoint
from pikfix.systems.latent.faces import detection
from pikfix.systems.latent.faces.enhance import enhance
from pikfix.systems.latent.faces.generator import FaceConfig, FaceGenerator
from pikfix.systems.latent.faces.served import ServedFaces
from pikfix.systems.registry import system_of

ROOT = Path(__file__).parents[2]
FILE_STEPS = ("decode_photo", "encode_photo")


def lay_file_steps(repository: Path) -> None:
    """The steps of files alone, as latent translation has them beside its networks."""
    configs = fixed_configs(system_of("latent"))
    for name in FILE_STEPS:
        (repository / name / "1").mkdir(parents=True)
        source = ROOT / "model_repository" / name / "1" / "model.py"
        (repository / name / "1" / "model.py").write_text(source.read_text())
    write_fixed_configs(repository, {name: configs[name] for name in FILE_STEPS})


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = FaceGenerator(FaceConfig("small", side=128, width=2, hidden=3))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("faces") / "faces.safetensors"
    save_checkpoint(network, path, system="faces")
    return path


@pytest.fixture(scope="module")
def server(generator: Path) -> Iterator[str]:
    repository = generator.parent / "repository"
    export_checkpoint(generator, repository)
    lay_file_steps(repository)
    with start_server(repository) as running:
        yield running.grpc_url


def asked(
    client: Any, model: str, outputs: list[str], **tensors: np.ndarray[Any, Any]
) -> list[np.ndarray[Any, Any]]:
    inputs = []
    for name, value in tensors.items():
        kind = "BYTES" if value.dtype == object else "FP32"
        inputs.append(grpc.InferInput(name, list(value.shape), kind))
        inputs[-1].set_data_from_numpy(value)
    answer = client.infer(
        model, inputs, outputs=[grpc.InferRequestedOutput(name) for name in outputs]
    )
    return [answer.as_numpy(name) for name in outputs]


def through(
    url: str, pixels: np.ndarray[Any, Any], **wishes: bool
) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """A photo through both steps of files, whatever networks do to it left out."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    photo = np.array([[file.getvalue()]], dtype=object)
    asking = json.dumps({"force_photo": True, "format": "png", **wishes}).encode()
    options = np.array([[asking]], dtype=object)
    with grpc.InferenceServerClient(url) as client:
        rgb, info = asked(
            client, "decode_photo", ["photo_rgb", "photo_info"], photo=photo, options=options
        )
        result, report = asked(
            client, "encode_photo", ["result", "report"], restored_rgb=rgb, photo_info=info
        )
    return np.asarray(Image.open(io.BytesIO(result[0, 0])).convert("RGB")), json.loads(report[0, 0])


@pytest.mark.serving
def test_a_face_is_drawn_by_the_servers_generator(server: str, generator: Path) -> None:
    pixels = skimage.data.astronaut()[:300, 50:400]
    result, report = through(server, pixels)
    assert report["faces"] == 1
    network = load(generator).model
    photo_rgb = np.ascontiguousarray(np.moveaxis(pixels / np.float32(127.5) - 1, 2, 0))
    with torch.no_grad():
        expected, count = enhance(
            photo_rgb, lambda faces: network(torch.from_numpy(faces)).numpy(), side=128
        )
    assert count == 1
    levels = np.moveaxis((expected + 1) * 127.5, 0, 2)
    assert np.abs(result - levels).max() < 0.6  # half a level is rounding
    changed = (result != pixels).any(axis=2)
    assert 0.02 < changed.mean() < 0.5
    left, report = through(server, pixels, faces=False)
    assert report["faces"] == 0
    np.testing.assert_array_equal(left, pixels)


@pytest.mark.serving
def test_a_photo_without_faces_stays_as_it_is(server: str) -> None:
    pixels = np.repeat(skimage.data.coins()[:200, :256, None], 3, axis=2)
    result, report = through(server, pixels)
    assert report["faces"] == 0
    np.testing.assert_array_equal(result, pixels)


class Answer:
    """What the server's generator answers: the mirrored face, or an error."""

    def __init__(self, inputs: list[Any], error: str | None) -> None:
        self.inputs, self.text = inputs, error

    def has_error(self) -> bool:
        return self.text is not None

    def error(self) -> Any:
        return SimpleNamespace(message=lambda: self.text)


def backend(error: str | None = None) -> Any:
    def request(model_name: str, requested_output_names: list[str], inputs: list[Any]) -> Any:
        assert (model_name, requested_output_names) == ("draw_faces", ["OUTPUT__0"])
        assert [(one.name, one.array.shape) for one in inputs] == [("INPUT__0", (1, 3, 128, 128))]
        return SimpleNamespace(exec=lambda: Answer(inputs, error))

    def output(answer: Answer, name: str) -> Any:
        assert name == "OUTPUT__0"
        return SimpleNamespace(as_numpy=lambda: answer.inputs[0].array[..., ::-1])

    return SimpleNamespace(
        InferenceRequest=request,
        Tensor=lambda name, array: SimpleNamespace(name=name, array=array),
        get_output_tensor_by_name=output,
    )


def repository_of(folder: Path, system: str = "faces") -> Path:
    """A repository in which the generator's tensors have a server's own names."""
    checkpoint = {"system": system, "config": {"side": 128}}
    manifest = {"checkpoint": {"system": "latent"}, "others": {"x": {"checkpoint": checkpoint}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "draw_faces").mkdir()
    (folder / "draw_faces" / "config.pbtxt").write_text(
        'name: "draw_faces"\ninput {\n  name: "INPUT__0"\n}\noutput {\n  name: "OUTPUT__0"\n}\n'
    )
    return folder


def astronaut() -> np.ndarray[Any, Any]:
    pixels = skimage.data.astronaut()[:300, 50:400] / np.float32(127.5) - 1
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def test_a_generator_is_asked_by_the_names_that_its_server_gave_it(tmp_path: Path) -> None:
    served = ServedFaces.of(repository_of(tmp_path), backend())
    assert served is not None
    photo = astronaut()
    found, count = served.drawn(photo)
    expected, _ = enhance(photo, lambda faces: faces[..., ::-1], side=128)
    assert count == 1
    np.testing.assert_array_equal(found, expected)


def test_a_generator_that_fails_fails_the_photo(tmp_path: Path) -> None:
    served = ServedFaces.of(repository_of(tmp_path), backend("out of memory"))
    assert served is not None
    with pytest.raises(PhotoError, match="draw_faces: out of memory"):
        served.drawn(astronaut())


def test_a_missing_detector_fails_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedFaces.of(repository_of(tmp_path), backend())
    assert served is not None
    photo = astronaut()

    def without(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(detection.importlib, "import_module", without)
    with pytest.raises(PhotoError, match=r"pip install 'pikfix\[faces\]'") as caught:
        served.drawn(photo)
    assert caught.value.code == "missing_package"


def test_a_repository_without_a_generator_draws_nothing(tmp_path: Path) -> None:
    assert ServedFaces.of(tmp_path, backend()) is None
    assert ServedFaces.of(repository_of(tmp_path, system="pikfix"), backend()) is None
    (tmp_path / "manifest.json").write_text("{")
    assert ServedFaces.of(tmp_path, backend()) is None
