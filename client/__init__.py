"""The client of a pikfix server; needs numpy, Pillow and tritonclient, and no torch.

::

    from pikfix.client import PikFixClient

    with PikFixClient("localhost:8001") as client:
        restored = client.restore("old.jpg", reference="colour.jpg")
        restored.save("restored.jpg")

The errors are drawn as a tree in :mod:`pikfix.client._errors`; ``PikFixError`` is their base.
"""

from pikfix.client._async_client import AsyncPikFixClient
from pikfix.client._client import PikFixClient
from pikfix.client._errors import (
    AccessDeniedError,
    ClientClosedError,
    ConnectionFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    ForkedClientError,
    InvalidInputError,
    InvalidOptionsError,
    InvalidPhotoError,
    InvalidReferenceError,
    InvalidResponseError,
    InvalidTensorError,
    MessageTooLargeError,
    MissingPackageError,
    ModelNotFoundError,
    PhotoTooLargeError,
    PikFixError,
    ProxyError,
    RequestCancelledError,
    ServerBusyError,
    ServerError,
    ServerNotReadyError,
    ServerUnreachableError,
    StepCrashedError,
    StepFailedError,
    TlsError,
    UnsupportedPhotoError,
    WrongLoopError,
    WrongServerError,
)
from pikfix.client._inputs import PhotoLike
from pikfix.client._options import Limits, Retry, Timeout, Tls
from pikfix.client._results import ModelStatus, RestoredPhoto, ServerInfo
from pikfix.protocol.options import PictureFormat
from pikfix.protocol.report import PhotoInfo, ReferenceUse, Report, ResultInfo, StepSeconds

__all__ = [
    "AccessDeniedError",
    "AsyncPikFixClient",
    "ClientClosedError",
    "ConnectionFailedError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "ForkedClientError",
    "InvalidInputError",
    "InvalidOptionsError",
    "InvalidPhotoError",
    "InvalidReferenceError",
    "InvalidResponseError",
    "InvalidTensorError",
    "Limits",
    "MessageTooLargeError",
    "MissingPackageError",
    "ModelNotFoundError",
    "ModelStatus",
    "PhotoInfo",
    "PhotoLike",
    "PhotoTooLargeError",
    "PictureFormat",
    "PikFixClient",
    "PikFixError",
    "ProxyError",
    "ReferenceUse",
    "Report",
    "RequestCancelledError",
    "RestoredPhoto",
    "ResultInfo",
    "Retry",
    "ServerBusyError",
    "ServerError",
    "ServerInfo",
    "ServerNotReadyError",
    "ServerUnreachableError",
    "StepCrashedError",
    "StepFailedError",
    "StepSeconds",
    "Timeout",
    "Tls",
    "TlsError",
    "UnsupportedPhotoError",
    "WrongLoopError",
    "WrongServerError",
]
