"""The client for ordinary, blocking code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from pikfix.client._address import parse_address
from pikfix.client._environment import connection
from pikfix.client._errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    PikFixError,
    ServerNotReadyError,
    ServerUnreachableError,
)
from pikfix.client._guard import Guard, check_headers, check_names, check_options
from pikfix.client._inputs import PhotoLike
from pikfix.client._mapping import map_error
from pikfix.client._options import Limits, Retry, Timeout, Tls
from pikfix.client._passes import SystemName, passes, seconds_left, systems_of
from pikfix.client._requests import (
    Request,
    photo_result,
    server_information,
    tensor_request,
    tensor_result,
    time_limit,
    why_not_ready,
)
from pikfix.client._results import RestoredPhoto, ServerInfo
from pikfix.client._transport import InferenceServerException, open_channel
from pikfix.client._waits import Tries
from pikfix.protocol.names import DEFAULT_SYSTEM, PHOTO_MODELS
from pikfix.protocol.options import DEFAULT_QUALITY, PictureFormat

DEFAULT_URL = "localhost:8001"


class PikFixClient:
    """Restores and colorizes photos on a Triton server, over one kept connection.

    Safe to share between threads, not between processes: make one in each, after a fork. Close it,
    or use it in a ``with`` block.

    Args:
        url: ``host:port`` of the server's gRPC port. Several servers share the calls in turn:
            those that ``dns:///host:port`` (or ``host:port``) stands for, or a list,
            ``ipv4:a:port,b:port`` or ``ipv6:[a]:port,[b]:port``.
        timeout: how long to wait.
        limits: message sizes and keepalive.
        retry: what is sent again, and whether a server without room is waited for.
        tls: encryption; None connects without.
        token: sent with every call as ``authorization: Bearer TOKEN``.
        headers: further metadata to send with every call.
        proxy: whether to connect through the proxy that the environment names (``grpc_proxy``,
            ``https_proxy``, ``http_proxy``, not for hosts in ``no_proxy``); None does, except
            to this machine and to lists of addresses. All calls go where a proxy connects to:
            replicas do not share them.

    Raises:
        ValueError: ``url`` is no address, or an option has another type or cannot be sent.
        OSError: a TLS file cannot be read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: Timeout | None = None,
        limits: Limits | None = None,
        retry: Retry | None = None,
        tls: Tls | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: bool | None = None,
    ) -> None:
        self._url = url
        self._address = parse_address(url)
        check_options(timeout=timeout, limits=limits, retry=retry, tls=tls, proxy=proxy)
        check_names(self._address, tls)
        self._timeout = timeout or Timeout()
        self._limits = limits or Limits()
        self._headers = check_headers(headers, token)
        self._guard = Guard(url)
        self._retry = retry or Retry()
        self._closing = threading.Event()
        self._triton = open_channel(
            self._address, self._timeout, self._limits, self._retry, tls=tls, proxy=proxy
        )

    @classmethod
    def from_environment(cls, **arguments: Any) -> PikFixClient:
        """Return a client for the server that environment variables name.

        ``PIKFIX_URL``, ``PIKFIX_TOKEN``, ``PIKFIX_HEADERS`` (lines of ``NAME: VALUE``),
        ``PIKFIX_TLS`` (1 or 0), ``PIKFIX_TLS_CA``, ``PIKFIX_TLS_CERT``, ``PIKFIX_TLS_KEY``,
        ``PIKFIX_TLS_SERVER_NAME`` and ``PIKFIX_PROXY`` (1 or 0): the same as the command line's.

        Args:
            **arguments: of the constructor; they go before the variables.

        Raises:
            ValueError: a variable or an argument has no value that it can have.
        """
        return cls(**{**connection(), **arguments})

    @property
    def url(self) -> str:
        """The address as it was given."""
        return self._url

    def restore(
        self,
        photo: PhotoLike,
        reference: PhotoLike | Sequence[PhotoLike] | None = None,
        *,
        color: bool = True,
        force_color: bool = False,
        force_photo: bool = False,
        format: PictureFormat | None = None,
        quality: int = DEFAULT_QUALITY,
        profile: Literal["own", "srgb"] = "own",
        depth: Literal[8, 16] | None = None,
        pages: Literal["all", "first"] = "all",
        keep_color: bool = False,
        strength: float = 1.0,
        color_strength: float = 1.0,
        faces: bool = True,
        system: SystemName = "pikfix",
        mask: PhotoLike | None = None,
        timeout: float | None = None,
    ) -> RestoredPhoto:
        """Restore one photo, and colorize it after a reference.

        Args:
            photo: a path, an encoded file's bytes, a PIL image, or an array [H, W] or
                [H, W, 3] of uint8. Files are sent as they are; an image goes with its profile,
                EXIF, XMP, IPTC data, comments and resolution, and the report names what does not.
            reference: one colour photo or a list of them, in the same forms; None lets the
                server choose from its library, if it has one.
            color: False restores only and gives a grey picture.
            force_color: without a reference, take the best of the server's library even where
                none suits; otherwise such a photo is left grey, and the report says so.
            force_photo: restore the whole picture, also its border, a page of text or a
                drawing; these are otherwise left as they are, and the report says so.
            format: of the result; None keeps the photo's own where it is one of these, and
                gives PNG otherwise.
            quality: of a JPEG or WebP result, 1 to 100.
            profile: ``own`` stores the result in the photo's colour profile where that can hold
                it, and in sRGB otherwise; ``srgb`` always in sRGB.
            depth: bits a sample of the result; None keeps the photo's where the format can.
            pages: of a file with several photos, each on a page, ``first`` restores the first
                alone; it is refused otherwise, as a result holds one.
            keep_color: a photo that has colours keeps them, restored in its luminance alone; others
                are colorized as without it.
            strength: of the restoration, 0 to 1; at 0 the tones stay as they are.
            color_strength: of the result's colours, 0 to 1.
            faces: False leaves faces as the networks for whole photos make them, also where the
                server has a generator of faces.
            system: ``pikfix`` restores luminance and colorizes; ``latent`` mends scratches and
                holes by translation and keeps the photo's colours; ``latent+pikfix`` mends and
                then colorizes, in two requests.
            mask: of the photo's shape, white where it is damaged; filled beside what the server
                finds.
            timeout: seconds for this request; None takes the client's ``Timeout.request``.

        Returns:
            The result at the photo's own size, with a report.

        Raises:
            PikFixError: see :mod:`pikfix.client` for the tree.
            OSError: a path cannot be read.
        """
        began, seconds = time.monotonic(), time_limit(timeout, self._timeout)
        steps = passes(
            photo,
            reference,
            {
                "color": color,
                "force_color": force_color,
                "force_photo": force_photo,
                "format": format,
                "quality": quality,
                "profile": profile,
                "depth": depth,
                "pages": pages,
                "keep_color": keep_color,
                "strength": strength,
                "color_strength": color_strength,
                "faces": faces,
            },
            system=system,
            mask=mask,
            limit=self._limits.message_bytes,
        )
        request = next(steps)
        while True:
            answer = self._send(request, seconds_left(seconds, began))
            try:
                request = steps.send(photo_result(answer, self._url, request))
            except StopIteration as end:
                restored: RestoredPhoto = end.value
                return restored

    def infer(
        self,
        photo_l: npt.NDArray[np.float32],
        reference_lab: npt.NDArray[np.float32],
        *,
        timeout: float | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the networks on tensors.

        Args:
            photo_l: [B, 1, H, W] float32, L/50 - 1, in [-1, 1].
            reference_lab: [B, R, 3, Hr, Wr] float32, L/50 - 1, a/110, b/110, R >= 1.
            timeout: seconds for this request; None takes the client's ``Timeout.request``.

        Returns:
            restored_l [B, 1, H, W], and ab [B, 2, h, w] at the working size, both float32.

        Raises:
            InvalidTensorError: wrong type or shape, or values that are not finite; checked
                before anything is sent.
            PikFixError: see :mod:`pikfix.client` for the tree.
        """
        seconds = time_limit(timeout, self._timeout)
        request = tensor_request(photo_l, reference_lab, limit=self._limits.message_bytes)
        return tensor_result(self._send(request, seconds), photo_l, self._url)

    def is_ready(self, system: str = DEFAULT_SYSTEM) -> bool:
        """Return whether the server can restore photos now, by one system or several joined by +.

        False where nobody listens, or server or model are not there or not ready yet. An
        address that is wrong for good (another kind of server, TLS that does not fit) raises.
        """
        try:
            self.ensure_ready(system)
        except (
            ServerUnreachableError,
            ServerNotReadyError,
            ModelNotFoundError,
            DeadlineExceededError,
        ):
            return False
        return True

    def ensure_ready(self, system: str = DEFAULT_SYSTEM) -> None:
        """Return if the server can restore photos now; raise what is in the way otherwise.

        Of several servers one that can is enough.

        Raises:
            PikFixError: see :mod:`pikfix.client` for the tree.
        """
        seconds = self._timeout.status
        if not self._any(None, "is_server_ready", client_timeout=seconds):
            raise ServerNotReadyError("the server is not ready", url=self._url)
        for name in systems_of(system):
            model = PHOTO_MODELS[name]
            if not self._any(model, "is_model_ready", model, client_timeout=seconds):
                index = self._call(None, "get_model_repository_index", client_timeout=seconds)
                raise why_not_ready(self._url, index, model)

    def server_info(self) -> ServerInfo:
        """Return the server's name and version, and its models with their states.

        Raises:
            PikFixError: see :mod:`pikfix.client` for the tree.
        """
        seconds = self._timeout.status
        metadata = self._call(None, "get_server_metadata", client_timeout=seconds)
        index = self._call(None, "get_model_repository_index", client_timeout=seconds)
        return server_information(self._url, metadata, index)

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        if not self._guard.closed:
            self._guard.closed = True
            self._closing.set()
            if self._guard.at_home:
                self._triton.close()

    def __reduce__(self) -> NoReturn:
        self._guard.refuse_pickling()

    def __enter__(self) -> PikFixClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, request: Request, seconds: float | None) -> Any:
        tries = Tries(seconds, self._retry)
        while True:
            try:
                return self._call(
                    request.model,
                    "infer",
                    request.model,
                    request.inputs,
                    outputs=request.outputs,
                    client_timeout=tries.seconds_left,
                    parameters=tries.parameters,
                )
            except PikFixError as error:
                pause = tries.pause_after(error)
            self._closing.wait(pause)

    def _any(self, model: str | None, method: str, *args: Any, **kwargs: Any) -> bool:
        """Ask several servers in turn, where there are several, until one says yes."""
        for left in reversed(range(self._address.tries)):
            try:
                if self._call(model, method, *args, **kwargs):
                    return True
            except PikFixError as error:
                if not (left and error.passing):
                    raise
        return False

    def _call(self, model: str | None, method: str, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = getattr(self._triton, method)
        self._guard.enter(model)
        try:
            return call(*args, headers=self._headers, **kwargs)
        except InferenceServerException as error:
            mapped = map_error(error.status(), error.message(), model=model, url=self._url)
            raise self._guard.unless_closed(mapped) from error
        # Closed by another thread, no threads left at Python's end: gRPC and tritonclient raise
        # nearly every built-in exception there.
        except Exception as error:
            raise self._guard.translate(error, model) from error
