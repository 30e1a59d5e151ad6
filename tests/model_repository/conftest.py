"""The python steps without a server: its python module, as far as the steps use it.

Class and method names, the order of arguments and the texts that reach the steps are those of
``triton_python_backend_utils`` in Triton Inference Server 2.51.
"""

import enum
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2] / "model_repository"


class Tensor:
    def __init__(self, name, numpy_array):
        if not isinstance(name, str) or not isinstance(numpy_array, np.ndarray):
            raise TypeError("Tensor(name: str, numpy_array: numpy.ndarray)")
        if numpy_array.dtype == object:
            assert all(isinstance(item, bytes | str) for item in numpy_array.flat)
        else:
            assert numpy_array.dtype == np.float32, numpy_array.dtype
        self._name, self._array = name, numpy_array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class Code(enum.Enum):
    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    def __init__(self, message, code=Code.INTERNAL):
        if not isinstance(message, str) or not isinstance(code, Code):
            raise TypeError("TritonError(message: str, code: TritonErrorCode)")
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


for member in Code:
    setattr(TritonError, member.name, member)


PIKFIX = ("photo_l", "reference_lab", "photo_info")
"""What the ensemble pikfix_photo asks the first step for."""


class InferenceRequest:
    def __init__(self, inputs, parameters=None, request_id="", outputs=PIKFIX):
        self._inputs, self._request_id = inputs, request_id
        self._outputs = list(outputs)
        # The backend hands parameters over as JSON text, and as empty text where there are none.
        self._parameters = json.dumps(parameters) if parameters else ""

    def inputs(self):
        return self._inputs

    def parameters(self):
        return self._parameters

    def request_id(self):
        return self._request_id

    def requested_output_names(self):
        return self._outputs


class InferenceResponse:
    def __init__(self, output_tensors=None, error=None):
        if error is not None and not isinstance(error, TritonError):
            raise TypeError("error must be a TritonError")
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class Logger:
    errors: list[str] = []  # noqa: RUF012 - one log per process, as the server's
    warnings: list[str] = []  # noqa: RUF012

    @classmethod
    def log_error(cls, text):
        cls.errors.append(text)

    @classmethod
    def log_warn(cls, text):
        cls.warnings.append(text)


def get_input_tensor_by_name(inference_request, name):
    return next((t for t in inference_request.inputs() if t.name() == name), None)


@pytest.fixture
def backend(monkeypatch):
    module = types.ModuleType("triton_python_backend_utils")
    parts = (Tensor, TritonError, InferenceRequest, InferenceResponse, Logger)
    for part in (*parts, get_input_tensor_by_name):
        setattr(module, part.__name__, part)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    Logger.errors.clear()
    Logger.warnings.clear()
    limit = Image.MAX_IMAGE_PIXELS
    yield module
    Image.MAX_IMAGE_PIXELS = limit


class Step:
    """A model of the repository, loaded and initialized with configuration parameters."""

    def __init__(self, name, repository=REPOSITORY, **parameters):
        path = REPOSITORY / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"step_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = {"name": name}
        if parameters:
            written = {key: {"string_value": str(value)} for key, value in parameters.items()}
            config["parameters"] = written
        self.module = module
        self.model = module.TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(config),
                "model_name": name,
                "model_version": "1",
                "model_repository": str(repository / name),
            }
        )

    def run(self, *requests):
        """Each request: {input name: array, "parameters": {...}, "outputs": names}.

        Answers arrays by name, or the error.
        """
        made = []
        for request in requests:
            parameters = request.pop("parameters", None)
            outputs = request.pop("outputs", PIKFIX)
            tensors = [Tensor(name, array) for name, array in request.items()]
            made.append(InferenceRequest(tensors, parameters, outputs=outputs))
        responses = self.model.execute(made)
        assert len(responses) == len(made)
        return [
            response.error()
            if response.has_error()
            else {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            for response in responses
        ]


@pytest.fixture
def load(backend):
    return Step


@pytest.fixture(scope="session")
def text():
    """Build a BYTES tensor: text([row, ...]); a row is bytes or a list of bytes."""

    def build(rows):
        rows = [row if isinstance(row, list) else [row] for row in rows]
        array = np.empty((len(rows), len(rows[0])), dtype=object)
        for number, row in enumerate(rows):
            array[number] = row
        return array

    return build


@pytest.fixture(scope="session")
def save():
    def encode(pixels, name="PNG", **settings):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name, **settings)
        return file.getvalue()

    return encode
