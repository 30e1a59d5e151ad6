"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from pikfix.client._address import parse_address
from pikfix.client._client import DEFAULT_URL
from pikfix.client._environment import connection
from pikfix.client._errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    PikFixError,
    RequestCancelledError,
    ServerNotReadyError,
    ServerUnreachableError,
)
from pikfix.client._guard import Guard, check_headers, check_names, check_options
from pikfix.client._inputs import PhotoLike
from pikfix.client._mapping import map_error
from pikfix.client._options import Limits, Retry, Timeout, Tls
from pikfix.client._passes import Passes, SystemName, passes, seconds_left, systems_of
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
from pikfix.client._transport import InferenceServerException, grpc, open_async_channel
from pikfix.client._waits import Tries
from pikfix.protocol.names import DEFAULT_SYSTEM, PHOTO_MODELS
from pikfix.protocol.options import DEFAULT_QUALITY, PictureFormat

_Result = TypeVar("_Result")


def _after(steps: Passes, answer: RestoredPhoto | None) -> Request | RestoredPhoto:
    """The request that follows an answer, or the result."""
    try:
        return next(steps) if answer is None else steps.send(answer)
    except StopIteration as end:  # which no thread may let out
        restored: RestoredPhoto = end.value
        return restored


class AsyncPikFixClient:
    """Restores and colorizes photos on a Triton server, over one kept connection.

    The same calls as :class:`~pikfix.client.PikFixClient`, to be awaited. Files are read and
    pictures encoded in worker threads. Use one client per event loop; the connection belongs
    to the loop of the first call, and in another one, as a second ``asyncio.run()`` makes it, a
    call raises ``WrongLoopError``. Close it, or use it in an ``async with`` block.

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
        self._retry = retry or Retry()
        self._tls = tls
        self._proxy = proxy
        self._headers = check_headers(headers, token)
        self._guard = Guard(url)
        self._closing = asyncio.Event()
        # gRPC binds a channel to the running loop, and there may be none yet.
        self._triton: Any = None

    @classmethod
    def from_environment(cls, **arguments: Any) -> AsyncPikFixClient:
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

    async def restore(
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
        """Restore one photo; see :meth:`pikfix.client.PikFixClient.restore`."""
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
        request: Request | RestoredPhoto = await self._in_thread(_after, steps, None)
        while isinstance(request, Request):
            answer = await self._send(request, seconds_left(seconds, began))
            restored = photo_result(answer, self._url, request)
            request = await self._in_thread(_after, steps, restored)
        return request

    async def infer(
        self,
        photo_l: npt.NDArray[np.float32],
        reference_lab: npt.NDArray[np.float32],
        *,
        timeout: float | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the networks on tensors; see :meth:`pikfix.client.PikFixClient.infer`."""
        seconds = time_limit(timeout, self._timeout)
        request = await self._in_thread(
            tensor_request, photo_l, reference_lab, limit=self._limits.message_bytes
        )
        return tensor_result(await self._send(request, seconds), photo_l, self._url)

    async def is_ready(self, system: str = DEFAULT_SYSTEM) -> bool:
        """Return whether the server can restore photos now.

        See :meth:`pikfix.client.PikFixClient.is_ready`.
        """
        try:
            await self.ensure_ready(system)
        except (
            ServerUnreachableError,
            ServerNotReadyError,
            ModelNotFoundError,
            DeadlineExceededError,
        ):
            return False
        return True

    async def ensure_ready(self, system: str = DEFAULT_SYSTEM) -> None:
        """Return if the server can restore photos now; raise what is in the way otherwise.

        See :meth:`pikfix.client.PikFixClient.ensure_ready`.
        """
        seconds = self._timeout.status
        if not await self._any(None, "is_server_ready", client_timeout=seconds):
            raise ServerNotReadyError("the server is not ready", url=self._url)
        for name in systems_of(system):
            model = PHOTO_MODELS[name]
            if not await self._any(model, "is_model_ready", model, client_timeout=seconds):
                index = await self._call(None, "get_model_repository_index", client_timeout=seconds)
                raise why_not_ready(self._url, index, model)

    async def server_info(self) -> ServerInfo:
        """Return the server's name and version, and its models with their states."""
        seconds = self._timeout.status
        metadata = await self._call(None, "get_server_metadata", client_timeout=seconds)
        index = await self._call(None, "get_model_repository_index", client_timeout=seconds)
        return server_information(self._url, metadata, index)

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._guard.closed = True
        triton, self._triton = self._triton, None
        # The connection of another process or of a loop that has ended is not ours to close.
        if triton is not None and self._guard.at_home:
            self._closing.set()
            with contextlib.suppress(grpc.aio.UsageError):
                await triton.close()

    def __reduce__(self) -> NoReturn:
        self._guard.refuse_pickling()

    async def __aenter__(self) -> AsyncPikFixClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, request: Request, seconds: float | None) -> Any:
        tries = Tries(seconds, self._retry)
        while True:
            try:
                return await self._call(
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
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)

    async def _any(self, model: str | None, method: str, *args: Any, **kwargs: Any) -> bool:
        """Ask several servers in turn, where there are several, until one says yes."""
        for left in reversed(range(self._address.tries)):
            try:
                if await self._call(model, method, *args, **kwargs):
                    return True
            except PikFixError as error:
                if not (left and error.passing):
                    raise
        return False

    async def _call(self, model: str | None, method: str, *args: Any, **kwargs: Any) -> Any:
        self._guard.enter(model, loop=True)
        try:
            if self._triton is None:
                self._triton = open_async_channel(
                    self._address,
                    self._timeout,
                    self._limits,
                    self._retry,
                    tls=self._tls,
                    proxy=self._proxy,
                )
            call: Callable[..., Any] = getattr(self._triton, method)
            return await self._finish(call(*args, headers=self._headers, **kwargs), model)
        except PikFixError:
            raise
        except InferenceServerException as error:
            mapped = map_error(error.status(), error.message(), model=model, url=self._url)
            raise self._guard.unless_closed(mapped) from error
        except OSError:
            raise  # a TLS file that cannot be read
        # Closed by another task, a loop that ends: gRPC and tritonclient raise nearly every
        # built-in exception there.
        except Exception as error:
            raise self._guard.translate(error, model) from error

    async def _finish(self, call: Coroutine[Any, Any, Any], model: str | None) -> Any:
        """Await a call in a task of its own: closing cancels the call, but not its caller."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            # Whatever comes of it, nobody asks for it any more.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        if task.cancelled():
            cancelled = RequestCancelledError("the call was cancelled", model=model, url=self._url)
            raise self._guard.unless_closed(cancelled)
        return task.result()

    async def _in_thread(
        self, function: Callable[..., _Result], *args: Any, **kwargs: Any
    ) -> _Result:
        self._guard.enter(None, loop=True)
        try:
            return await asyncio.to_thread(function, *args, **kwargs)
        except RuntimeError as error:  # no new threads at Python's end
            raise self._guard.translate(error, None) from error
