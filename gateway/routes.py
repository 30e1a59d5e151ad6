"""The REST door: a restoration is asked for, watched, fetched, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from pikfix.gateway.library import no_library
from pikfix.gateway.metrics import MEDIA_TYPE
from pikfix.gateway.options import read_options
from pikfix.gateway.pictures import add_pictures, picture_of
from pikfix.gateway.problems import Problem
from pikfix.gateway.schema import PICTURES, RestorationView, problems, upload_form
from pikfix.gateway.shared import PRIVATE, Gateway
from pikfix.gateway.store import Job
from pikfix.gateway.uploads import Earlier, kept, read_form, save_files, texts

_HEARTBEAT_S = 10.0
_LONGEST_KEY = 200
_RESTART_S = 10


def build(gateway: Gateway) -> APIRouter:
    """Return the routes under ``/v1``."""
    router = APIRouter(prefix="/v1/restorations", tags=["restorations"])
    _add_asking(router, gateway)
    _add_watching(router, gateway)
    add_pictures(router, gateway)
    return router


def _add_asking(router: APIRouter, gateway: Gateway) -> None:
    settings = gateway.settings

    @router.post(
        "",
        response_model=None,
        summary="Restore and colorize a photo",
        responses={
            200: {
                "description": "The restored picture; Location names the restoration, whose report "
                "can be had there.",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in PICTURES.values()
                },
            },
            202: {"description": "Accepted (respond-async).", "model": RestorationView},
            **problems(400, 401, 408, 409, 413, 415, 422, 429, 502, 503, 504),
        },
        openapi_extra=upload_form(settings.references),
    )
    async def restore(
        request: Request,
        prefer: Annotated[
            str | None, Header(description="respond-async answers at once, with a job to watch.")
        ] = None,
        idempotency_key: Annotated[
            str | None,
            Header(description="A word of your own: sent again with it, nothing is done twice."),
        ] = None,
    ) -> Response:
        """Answer the picture, or with ``Prefer: respond-async`` a job.

        Without a reference the server chooses from its library, if it has one.
        """
        later = any(word.strip().lower() == "respond-async" for word in (prefer or "").split(","))
        owner = request.scope["pikfix.owner"]
        key = _checked_key(idempotency_key)
        with gateway.restorer.key(owner, key) as known:
            job = known
            if job is not None:
                async for _ in request.stream():
                    pass  # the same photo once more: whoever sends it has to be done with that
            else:
                with gateway.restorer.place():
                    job = await _accept(gateway, request, owner, key)
                    await gateway.restorer.add(job)
        place = f"/v1/restorations/{job.id}"
        if later:
            headers = {"Location": place, "Preference-Applied": "respond-async", **PRIVATE}
            return JSONResponse(gateway.view(job).model_dump(mode="json"), 202, headers=headers)
        if not await _while_connected(request, gateway.restorer.ended(job)):
            # Nobody knows of it but the caller, who has gone; with a key he may come back.
            if key is None:
                await gateway.restorer.remove(job)
            return Response(status_code=499)
        if not gateway.restorer.knows(job):
            raise Problem(
                404, "not_found", "There is no such restoration", "it was deleted meanwhile"
            )
        if not job.ended:
            raise Problem(
                503,
                "shutting_down",
                "The gateway is being restarted",
                f"the restoration goes on afterwards: ask for {place}/picture then",
                retry_after=_RESTART_S,
                headers={"Location": place},
            )
        response = picture_of(gateway, job)
        response.headers["Location"] = place
        return response


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and 0 < len(key) <= _LONGEST_KEY):
        raise Problem(
            400,
            "bad_request",
            "The request has another form",
            f"an Idempotency-Key has 1 to {_LONGEST_KEY} ASCII characters",
        )
    return key


async def _accept(gateway: Gateway, request: Request, owner: str, key: str | None) -> Job:
    """Read an upload, all of it onto the disk, and make a restoration of it."""
    try:
        return await _store(gateway, request, owner, key)
    except OSError as error:
        raise Problem(
            507,
            "not_writable",
            "The upload cannot be kept",
            f"{error.strerror}: the gateway's disk has no room or cannot be written to",
        ) from error


async def _store(gateway: Gateway, request: Request, owner: str, key: str | None) -> Job:
    async with contextlib.AsyncExitStack() as stack:
        form = await read_form(request, gateway.settings)
        stack.push_async_callback(form.close)
        said = texts(form, "options")
        if len(said) > 1:
            raise Problem(
                400, "bad_options", "An option cannot be used", "send options once, as one object"
            )
        options = read_options(said[0] if said else None)
        library = texts(form, "library")
        for name in library:
            if gateway.library is None:
                raise no_library()
            await gateway.library.path_of(name)
        before = [gateway.restorer.get(one, owner) for one in texts(form, "again")]
        keep = kept(form)
        again = [_earlier(gateway, one, keep) for one in before]
        incoming = stack.enter_context(gateway.store.incoming())
        name, size, references = await save_files(form, again, incoming, gateway.settings)
        job = Job(
            id=secrets.token_hex(16),
            owner=owner,
            created=time.time(),
            name=name,
            size=size,
            references=references,
            library=tuple(library),
            options=options,
            key=key,
        )
        await asyncio.to_thread(gateway.store.accept, job, incoming)
    return job


def _earlier(gateway: Gateway, job: Job, keep: frozenset[str]) -> Earlier:
    store = gateway.store
    numbers = range(job.references if "references" in keep else 0)
    references = tuple(store.reference(job, number) for number in numbers)
    return Earlier(
        job.name, store.photo(job), references, store.mask(job) if "mask" in keep else None
    )


async def _while_connected(request: Request, coroutine: Coroutine[Any, Any, None]) -> bool:
    """Await something; False if the caller went away first, and it is left off."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect" and not work.done():
            pass

    work = asyncio.create_task(coroutine)
    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


def _add_watching(router: APIRouter, gateway: Gateway) -> None:
    @router.get(
        "/{number}",
        summary="How a restoration is",
        responses=problems(401, 404),
    )
    async def state(number: str, request: Request, response: Response) -> RestorationView:
        """State, place in the queue, report or error."""
        response.headers.update(PRIVATE)
        return gateway.view(gateway.restorer.get(number, request.scope["pikfix.owner"]))

    @router.get(
        "/{number}/events",
        response_model=None,
        summary="Watch a restoration",
        responses={
            200: {
                "description": "Server-sent events `restoration`, each with the whole state as "
                "JSON, until it has ended or is deleted.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **problems(401, 404),
        },
    )
    async def events(number: str, request: Request) -> Response:
        """Tell of every change until the end."""
        job = gateway.restorer.get(number, request.scope["pikfix.owner"])
        headers = {"X-Accel-Buffering": "no", **PRIVATE}
        return StreamingResponse(
            _events(gateway, job), media_type="text/event-stream", headers=headers
        )

    @router.delete(
        "/{number}",
        status_code=204,
        response_model=None,
        summary="Delete a restoration",
        responses=problems(401, 404),
    )
    async def delete(number: str, request: Request) -> None:
        """Forget the photo and its result; work on it is left off."""
        job = gateway.restorer.get(number, request.scope["pikfix.owner"])
        await gateway.restorer.remove(job)


async def _events(gateway: Gateway, job: Job) -> AsyncIterator[str]:
    told = None
    async for _ in gateway.restorer.changes(_HEARTBEAT_S):
        if not gateway.restorer.knows(job):
            yield "event: deleted\ndata: {}\n\n"
            return
        text = gateway.view(job).model_dump_json()
        yield f"event: restoration\ndata: {text}\n\n" if text != told else ": waiting\n\n"
        if job.ended:
            return
        told = text


def add_operations(app: FastAPI, gateway: Gateway) -> None:
    """Add what operators ask for: ``/healthz`` and ``/metrics``."""

    @app.get("/healthz", tags=["operations"], responses=problems(503))
    async def healthz() -> dict[str, str]:
        """Send the server a tiny photo, unless it has just answered one."""
        return {"server": await gateway.canary.check(gateway.restorer.answered_at)}

    @app.get("/metrics", tags=["operations"], response_model=None)
    async def metrics() -> Response:
        """Counts and seconds in Prometheus' text format."""
        return Response(gateway.metrics.text(), media_type=MEDIA_TYPE)
