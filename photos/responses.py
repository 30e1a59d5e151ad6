"""How the python steps answer the server: one response per request, errors in one form."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.photos.errors import PhotoError
from pikfix.protocol.errors import error_text


def respond(
    backend: Any,
    step: str,
    work: Callable[[Any], Mapping[str, npt.NDArray[Any]]],
    request: Any,
) -> Any:
    """Run a step on one request, so that a failure is the answer to this request alone.

    Args:
        backend: the module ``triton_python_backend_utils``, which exists inside the server only.
        step: the model's name.
        work: request -> output name -> numpy array.
        request: an ``InferenceRequest``.

    Returns:
        An ``InferenceResponse`` with the outputs, or with the error: UNAVAILABLE, which clients
        retry, where there is no room, CANCELLED for a deadline, where that would be in vain,
        INTERNAL for what should not happen (its traceback goes to the server's log), INVALID_ARG
        for everything else.
    """
    try:
        outputs = work(request)
    except PhotoError as error:
        status = {"busy": "UNAVAILABLE", "deadline_exceeded": "CANCELLED"}
        code = getattr(backend.TritonError, status.get(error.code, "INVALID_ARG"))
        return _failure(backend, step, error, code)
    # The server would fail every request of the batch, and without the step's name.
    except Exception as error:
        backend.Logger.log_error(f"[{step}] {traceback.format_exc()}")
        failure = PhotoError("internal", f"{type(error).__name__}: see the server's log")
        return _failure(backend, step, failure, backend.TritonError.INTERNAL)
    tensors = [
        backend.Tensor(name, np.ascontiguousarray(values)) for name, values in outputs.items()
    ]
    return backend.InferenceResponse(output_tensors=tensors)


def _failure(backend: Any, step: str, error: PhotoError, code: Any) -> Any:
    text = error_text(step, error.code, error.message)
    return backend.InferenceResponse(output_tensors=[], error=backend.TritonError(text, code))
