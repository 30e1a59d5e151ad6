"""Routes of pictures: the photo, its result, the references that suit it; and of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

from pikfix.gateway.library import no_library
from pikfix.gateway.previews import LARGEST_SIDE
from pikfix.gateway.problems import Problem
from pikfix.gateway.schema import PICTURES, problems
from pikfix.gateway.shared import PRIVATE, Gateway
from pikfix.gateway.store import Job
from pikfix.protocol.options import DEFAULT_QUALITY

PAGE = Path(__file__).parent / "page"
THUMBNAIL_SIDE = 192

_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp"}

Side = Annotated[
    int | None,
    Query(ge=16, le=LARGEST_SIDE, description="A JPEG with at most this long side instead."),
]
Strength = Annotated[
    float | None,
    Query(ge=0, le=1, description="Share of the colours; the file is encoded anew below 1."),
]


class ReferenceView(BaseModel):
    """A picture of the library, ranked for a photo."""

    name: str
    score: float
    suits: bool
    taken: bool


class ServiceView(BaseModel):
    """What a page has to know before it sends anything."""

    version: str
    upload_bytes: int
    references: int
    in_flight: int
    library: bool
    token: bool
    systems: list[str]


def result_name(job: Job, format: str) -> str:
    """The file name that a result is saved under."""
    return f"{Path(job.name).stem or 'photo'}-restored{_SUFFIXES[format]}"


def result_format(gateway: Gateway, job: Job) -> str:
    """The format of a result.

    Raises:
        Problem: it failed, or is not done.
    """
    if job.state == "failed":
        raise Problem.from_dict(job.error or {})
    if job.state != "done" or job.report is None:
        raise Problem(
            409,
            "not_done",
            "It is not done",
            f"the restoration is {job.state}: ask again once its state is done",
            retry_after=gateway.restorer.seconds_left(job) or 1,
        )
    return str(job.report["result"]["format"])


def picture_of(gateway: Gateway, job: Job) -> Response:
    """The restored picture as an answer.

    Raises:
        Problem: it failed, or is not done.
    """
    format = result_format(gateway, job)
    return FileResponse(
        gateway.store.result(job),
        media_type=PICTURES[format],
        filename=result_name(job, format),
        headers=PRIVATE,
    )


def _binary(*kinds: str) -> dict[int | str, dict[str, object]]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"description": "The picture's file.", "content": content}}


def add_pictures(router: APIRouter, gateway: Gateway) -> None:
    """Add the pictures of a restoration."""

    def job_of(number: str, request: Request) -> Job:
        return gateway.restorer.get(number, request.scope["pikfix.owner"])

    async def sent(path: Path, name: str, side: int | None) -> Response:
        if side is not None:
            return _jpeg(await gateway.previews.small(path, side))
        # A stranger's file is nothing that a browser may take for a page.
        kind = "application/octet-stream"
        return FileResponse(path, media_type=kind, filename=name, headers=PRIVATE)

    @router.get(
        "/{number}/picture",
        response_model=None,
        summary="The restored picture",
        responses={
            **_binary(*PICTURES.values()),
            **problems(401, 404, 409, 413, 415, 422, 502, 503, 504),
        },
    )
    async def picture(
        number: str, request: Request, side: Side = None, strength: Strength = None
    ) -> Response:
        """The picture as the server wrote it, or why there is none."""
        job = job_of(number, request)
        format = result_format(gateway, job)
        path = gateway.store.result(job)
        if side is not None:
            return _jpeg(await gateway.previews.small(path, side))
        if strength is None or strength == 1:
            return picture_of(gateway, job)
        quality = job.options.get("quality", DEFAULT_QUALITY)
        data = await gateway.previews.fainter(path, format, strength, quality)
        return FileLike(data, PICTURES[format], result_name(job, format))

    @router.get(
        "/{number}/photo",
        response_model=None,
        summary="The photo that was sent",
        responses={
            **_binary("image/jpeg", "application/octet-stream"),
            **problems(401, 404, 422),
        },
    )
    async def photo(number: str, request: Request, side: Side = None) -> Response:
        """The photo's own file, or a JPEG of it."""
        job = job_of(number, request)
        return await sent(gateway.store.photo(job), job.name, side)

    @router.get(
        "/{number}/mask",
        response_model=None,
        summary="The mask that was sent",
        responses={
            **_binary("image/jpeg", "application/octet-stream"),
            **problems(401, 404, 422),
        },
    )
    async def mask(number: str, request: Request, side: Side = None) -> Response:
        """The mask's own file, or a JPEG of it."""
        job = job_of(number, request)
        path = gateway.store.mask(job)
        if path is None:
            raise Problem(404, "not_found", "There is no mask", "the photo was sent without one")
        return await sent(path, f"{Path(job.name).stem or 'photo'}-mask", side)

    @router.get(
        "/{number}/references", summary="The library's references", responses=problems(401, 404)
    )
    async def references(number: str, request: Request) -> list[ReferenceView]:
        """The library's pictures that suit the photo, the best first."""
        job = job_of(number, request)
        if gateway.library is None:
            raise no_library()
        kept = gateway.store.ranking(job)
        found = await gateway.library.rank(gateway.store.photo(job), kept)
        return [ReferenceView(**one) for one in found]


class FileLike(Response):
    """Bytes that are saved under a name."""

    def __init__(self, data: bytes, kind: str, name: str) -> None:
        super().__init__(data, media_type=kind, headers=PRIVATE)
        # Starlette's own rules for names in headers.
        named = FileResponse("", filename=name).headers["content-disposition"]
        self.headers["content-disposition"] = named


def _jpeg(data: bytes) -> Response:
    return Response(data, media_type="image/jpeg", headers=PRIVATE)


def add_service(app: FastAPI, gateway: Gateway) -> None:
    """Add what the page asks first, the library's thumbnails, and the page itself."""

    @app.get("/service", tags=["operations"])
    async def service() -> ServiceView:
        """Limits, whether there are a library and tokens, and the systems that are ready now."""
        settings = gateway.settings
        return ServiceView(
            version=app.version,
            upload_bytes=settings.upload_bytes,
            references=settings.references,
            in_flight=settings.in_flight,
            library=gateway.library is not None,
            token=settings.tokens is not None,
            systems=await gateway.systems.ready(),
        )

    @app.get(
        "/v1/library/thumbnail",
        tags=["restorations"],
        response_model=None,
        responses={**_binary("image/jpeg"), **problems(401, 404, 422)},
    )
    async def thumbnail(name: str) -> Response:
        """A picture of the library, small."""
        if gateway.library is None:
            raise no_library()
        path = await gateway.library.path_of(name)
        return _jpeg(await gateway.previews.small(path, THUMBNAIL_SIDE))

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
