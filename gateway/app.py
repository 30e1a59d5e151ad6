"""The ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pikfix.client import AsyncPikFixClient
from pikfix.gateway.door import Door
from pikfix.gateway.health import Canary, Systems
from pikfix.gateway.library import Library
from pikfix.gateway.metrics import Metrics
from pikfix.gateway.pictures import add_service
from pikfix.gateway.problems import Problem
from pikfix.gateway.restorer import Restorer
from pikfix.gateway.routes import add_operations, build
from pikfix.gateway.settings import Settings
from pikfix.gateway.shared import Gateway
from pikfix.gateway.store import Store
from pikfix.gateway.tokens import Tokens

_DESCRIPTION = "Restores and colorizes old photos. Errors are problem+json with a `code`."


def create_app(settings: Settings, connect: Callable[[], AsyncPikFixClient]) -> FastAPI:
    """Return the application; it holds its folder from now on until it is shut down.

    Args:
        settings: limits, places and who may come in.
        connect: makes the client, in the event loop that will use it.

    Raises:
        LibraryError: the library cannot be used.
        StoreError: another gateway uses the folder.
        TokensError: the file of tokens cannot be used.
        OSError: a file or folder cannot be used.
    """
    tokens = None if settings.tokens is None else Tokens(settings.tokens)
    library = None if settings.library is None else Library(settings.library)
    gateway = Gateway(settings, Store(settings.folder), Metrics(), library)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            async with connect() as client:
                gateway.canary = Canary(client)
                gateway.systems = Systems(client)
                gateway.restorer = Restorer(
                    client, gateway.store, settings, gateway.metrics, library
                )
                await gateway.restorer.start()
                try:
                    yield
                finally:
                    await gateway.restorer.stop()
        finally:
            gateway.store.close()

    app = FastAPI(
        title="pikfix",
        version=version("pikfix"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Their pages come from another host.
        docs_url=None,
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.include_router(build(gateway))
    add_operations(app, gateway)
    add_service(app, gateway)
    _add_problems(app)
    app.add_middleware(Door, settings=settings, tokens=tokens, metrics=gateway.metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Idempotency-Key", "Prefer"],
            expose_headers=["Location", "Retry-After", "Content-Disposition"],
        )
    return app


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def of_problem(_request: Request, problem: Problem) -> Response:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        titles = {404: "There is nothing here", 405: "This cannot be done here"}
        title = titles.get(error.status_code, "The request has another form")
        detail = f"{request.method} {request.url.path[:200]}: see /openapi.json for what there is"
        problem = Problem(error.status_code, "bad_request", title, detail, headers=error.headers)
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def of_validation(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        detail = f"{where}: {first['msg']}"
        return Problem(400, "bad_request", "The request has another form", detail).response()

    @app.exception_handler(ClientDisconnect)
    async def of_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def of_defect(_request: Request, _error: Exception) -> Response:
        detail = "the gateway's log says more"
        return Problem(500, "internal", "Something failed", detail).response()
