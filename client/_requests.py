"""Requests and answers, the same for both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.client._errors import (
    InvalidOptionsError,
    InvalidResponseError,
    InvalidTensorError,
    MessageTooLargeError,
    ModelNotFoundError,
    ServerError,
    ServerNotReadyError,
)
from pikfix.client._guard import check_seconds
from pikfix.client._inputs import (
    PhotoLike,
    check_options,
    check_tensor,
    check_tensors,
    encode_photo,
    encode_references,
)
from pikfix.client._options import Timeout
from pikfix.client._results import ModelStatus, RestoredPhoto, ServerInfo
from pikfix.client._transport import triton
from pikfix.protocol.deadline import deadline_in
from pikfix.protocol.names import DEFAULT_SYSTEM, PHOTO_MODELS, TENSOR_MODEL
from pikfix.protocol.report import Report, ReportError

# Names, shapes and parameters around the contents of a message.
_ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Request:
    """A request that is ready to be sent.

    Attributes:
        model: the model that is called.
        inputs: tritonclient's inputs.
        outputs: tritonclient's requested outputs.
        notes: what the caller's picture held and the request does not, for the report.
        here: whether the caller's picture was in memory, and has no file format of its own.
    """

    model: str
    inputs: list[Any]
    outputs: list[Any]
    notes: tuple[str, ...] = ()
    here: bool = False


def _bytes_input(name: str, values: Sequence[bytes]) -> Any:
    tensor = np.empty((1, len(values)), dtype=np.object_)
    tensor[0, :] = values
    return triton.InferInput(name, list(tensor.shape), "BYTES").set_data_from_numpy(tensor)


def _tensor_input(name: str, tensor: npt.NDArray[np.float32]) -> Any:
    return triton.InferInput(name, list(tensor.shape), "FP32").set_data_from_numpy(tensor)


def _check_size(sizes: Sequence[int], limit: int, model: str) -> None:
    total = sum(sizes)
    if total + _ENVELOPE_BYTES > limit:
        raise MessageTooLargeError(
            f"the request holds {total} bytes, and a message at most {limit}", model=model
        )


def photo_request(
    photo: PhotoLike,
    reference: PhotoLike | Sequence[PhotoLike] | None,
    options: Mapping[str, Any],
    *,
    limit: int,
    system: str = DEFAULT_SYSTEM,
    mask: PhotoLike | None = None,
) -> Request:
    """Return the request to a system's model for files; see ``PikFixClient.restore``."""
    model = PHOTO_MODELS[system]
    none = reference is None or (isinstance(reference, (list, tuple)) and not reference)
    if not none and system != DEFAULT_SYSTEM:
        raise InvalidOptionsError(
            f"the system {system} adds no colours and takes no reference; leave it out, or ask for"
            f" system='{system}+{DEFAULT_SYSTEM}'"
        )
    asked = check_options(options)
    encoded = encode_photo(photo)
    if encoded.here and asked.format is None:
        # The caller's picture was in memory and has no file format of its own.
        asked = replace(asked, format="png")
    references = encode_references(reference)
    masks = [] if mask is None else [encode_photo(mask).data]
    _check_size([len(encoded.data), *map(len, (*references, *masks))], limit, model)
    inputs = [_bytes_input("photo", [encoded.data])]
    if references:
        inputs.append(_bytes_input("reference", references))
    if masks:
        inputs.append(_bytes_input("mask", masks))
    inputs.append(_bytes_input("options", [asked.to_json()]))
    outputs = [triton.InferRequestedOutput(name) for name in ("result", "report")]
    return Request(model, inputs, outputs, encoded.notes, encoded.here)


def tensor_request(
    photo_l: npt.NDArray[np.float32], reference_lab: npt.NDArray[np.float32], *, limit: int
) -> Request:
    """Return the request to ``pikfix``; see ``PikFixClient.infer``."""
    check_tensors(photo_l, reference_lab)
    _check_size([photo_l.nbytes, reference_lab.nbytes], limit, TENSOR_MODEL)
    inputs = [_tensor_input("photo_l", photo_l), _tensor_input("reference_lab", reference_lab)]
    outputs = [triton.InferRequestedOutput(name) for name in ("restored_l", "ab")]
    return Request(TENSOR_MODEL, inputs, outputs)


def time_limit(timeout: float | None, default: Timeout) -> float | None:
    """Return the seconds a request may take; None for no limit.

    Raises:
        ValueError: ``timeout`` is not a positive number.
    """
    if timeout is None:
        return default.request
    return check_seconds("timeout", timeout)


def deadline_parameters(seconds: float | None) -> dict[str, int] | None:
    """Return the request parameter that carries the deadline to every step, if there is one."""
    return None if seconds is None else deadline_in(seconds)


def _output(answer: Any, name: str, model: str, url: str) -> npt.NDArray[Any]:
    try:
        array = answer.as_numpy(name)
    except Exception as cause:
        # tritonclient parses the server's bytes with struct and numpy and lets any of
        # their errors through.
        raise InvalidResponseError(
            f"cannot read the output {name}: {cause}", model=model, url=url
        ) from cause
    if array is None:
        raise InvalidResponseError(f"the output {name} is missing", model=model, url=url)
    return np.asarray(array)


def photo_result(answer: Any, url: str, request: Request) -> RestoredPhoto:
    """Return the answer to a request with a photo, its warnings after those of the request.

    Raises:
        InvalidResponseError: an output is missing, empty or not what the contract says.
    """
    values = []
    for name in ("result", "report"):
        array = _output(answer, name, request.model, url)
        if array.size != 1 or not isinstance(array.flat[0], bytes) or not array.flat[0]:
            raise InvalidResponseError(
                f"the output {name} must be one non-empty file, got shape {list(array.shape)} "
                f"of {array.dtype}",
                model=request.model,
                url=url,
            )
        values.append(array.flat[0])
    try:
        report = Report.from_json(values[1])
    except ReportError as cause:
        raise InvalidResponseError(str(cause), model=request.model, url=url) from cause
    if request.notes:
        report = replace(report, warnings=(*request.notes, *report.warnings))
    return RestoredPhoto(data=values[0], report=report)


def tensor_result(
    answer: Any, photo_l: npt.NDArray[np.float32], url: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the answer of ``pikfix``.

    Raises:
        InvalidResponseError: an output is missing, of another shape or type, or not finite.
    """
    restored_l = _output(answer, "restored_l", TENSOR_MODEL, url)
    ab = _output(answer, "ab", TENSOR_MODEL, url)
    try:
        check_tensor("restored_l", restored_l, photo_l.shape)
        check_tensor("ab", ab, (photo_l.shape[0], 2, None, None))
    except InvalidTensorError as cause:
        raise InvalidResponseError(
            f"the server's {cause.detail}", model=TENSOR_MODEL, url=url
        ) from cause
    # as_numpy gives views of the message, which cannot be written to.
    return restored_l.copy(), ab.copy()


def why_not_ready(url: str, index: Any, model: str) -> ServerError:
    """Return what the repository's index says about a photo model that is not ready."""
    for one in index.models:
        if one.name == model:
            state = ": ".join(text for text in (one.state, one.reason) if text)
            return ServerNotReadyError(
                f"the model is not ready ({state or 'never loaded'})", model=model, url=url
            )
    names = {one.name for one in index.models}
    names = {one.name for one in index.models}
    there = [system for system, photos in PHOTO_MODELS.items() if photos in names]
    of = f" (its systems: {', '.join(there)})" if there else ""
    return ModelNotFoundError(f"the server has no such model{of}", model=model, url=url)


def server_information(url: str, metadata: Any, index: Any) -> ServerInfo:
    """Return what the two protobuf answers say."""
    models = (
        ModelStatus(name=one.name, version=one.version, state=one.state, reason=one.reason)
        for one in index.models
    )
    return ServerInfo(
        url=url,
        name=metadata.name,
        version=metadata.version,
        models=tuple(sorted(models, key=lambda one: (one.name, one.version))),
    )
