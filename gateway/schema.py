"""What the REST door answers, as OpenAPI describes it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from pikfix.gateway.options import Options
from pikfix.gateway.problems import MEDIA_TYPE
from pikfix.gateway.restorer import Restorer
from pikfix.gateway.store import Job
from pikfix.gateway.uploads import KEEP

PICTURES: dict[str, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "tiff": "image/tiff",
    "webp": "image/webp",
}
_ID = "0f8fad5bd9cb469fa16570867728950e"
_REPORT: JsonDict = {
    "photo": {
        "width": 1200,
        "height": 800,
        "format": "jpeg",
        "mode": "L",
        "bit_depth": 8,
        "content": "photo",
        "rectangle": None,
    },
    "result": {"width": 1200, "height": 800, "format": "jpeg"},
    "references": [{"source": "library", "name": "harbour.jpg", "score": 0.61, "share": 1.0}],
    "colorized": True,
    "mean_confidence": 0.72,
    "seconds": {"decode_photo": 0.05, "networks": 3.1, "encode_photo": 0.08},
    "model_version": "compact",
    "warnings": [],
}
_PROBLEM: JsonDict = {
    "type": "urn:pikfix:problem:bad_photo",
    "title": "The photo cannot be read",
    "status": 422,
    "detail": "not a picture, or its first bytes are damaged: send one of JPEG, PNG, TIFF, ...",
    "code": "bad_photo",
    "step": "decode_photo",
}


class ProblemView(BaseModel):
    """What went wrong (RFC 9457), with the client's code for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROBLEM]})

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, in a line.")
    code: str = Field(description="One word for programs, such as bad_photo.")
    step: str | None = Field(None, description="The server's step that failed.")
    retry_after: int | None = Field(
        None, description="Seconds after which the same request may succeed."
    )


class PhotoView(BaseModel):
    """The photo that was sent."""

    name: str
    bytes: int


class RestorationView(BaseModel):
    """A restoration: what was asked for, how far it is, and what came of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _ID,
                    "state": "done",
                    "photo": {"name": "old.jpg", "bytes": 318442},
                    "references": 0,
                    "mask": False,
                    "library": [],
                    "options": {"quality": 90},
                    "ahead": 0,
                    "seconds_left": None,
                    "created": "2026-11-27T16:00:00Z",
                    "started": "2026-11-27T16:00:01Z",
                    "finished": "2026-11-27T16:00:05Z",
                    "expires": "2026-11-28T16:00:05Z",
                    "report": _REPORT,
                    "error": None,
                    "links": {
                        "self": f"/v1/restorations/{_ID}",
                        "events": f"/v1/restorations/{_ID}/events",
                        "picture": f"/v1/restorations/{_ID}/picture",
                    },
                }
            ]
        }
    )

    id: str
    state: Literal["queued", "running", "done", "failed"]
    photo: PhotoView
    references: int = Field(description="References that were sent.")
    mask: bool = Field(description="Whether a mask was sent.")
    library: list[str] = Field(description="Pictures of the server's library that were asked for.")
    options: dict[str, Any]
    ahead: int = Field(description="Restorations that are begun before this one.")
    seconds_left: int | None = Field(
        description="About how long it will take, by what the last ones took."
    )
    created: datetime
    started: datetime | None
    finished: datetime | None
    expires: datetime | None = Field(description="When it is deleted.")
    report: dict[str, Any] | None = Field(description="What the server says about the result.")
    error: ProblemView | None
    links: dict[str, str]


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(round(seconds, 3), timezone.utc)


def view(job: Job, restorer: Restorer, keep_seconds: float, *, mask: bool) -> RestorationView:
    """How a restoration is now."""
    place = f"/v1/restorations/{job.id}"
    links = {"self": place, "events": f"{place}/events", "photo": f"{place}/photo"}
    if job.state == "done":
        links["picture"] = f"{place}/picture"
    if mask:
        links["mask"] = f"{place}/mask"
    created = _moment(job.created)
    assert created is not None  # for the type checker
    return RestorationView(
        id=job.id,
        state=job.state,
        photo=PhotoView(name=job.name, bytes=job.size),
        references=job.references,
        mask=mask,
        library=list(job.library),
        options=job.options,
        ahead=restorer.ahead(job),
        seconds_left=restorer.seconds_left(job),
        created=created,
        started=_moment(job.started),
        finished=_moment(job.finished),
        expires=None if job.finished is None else _moment(job.finished + keep_seconds),
        report=job.report,
        error=None if job.error is None else ProblemView(**job.error),
        links=links,
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of answers that are errors."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemView"}}}
    words = {
        400: "The form or an option cannot be used.",
        401: "A token is needed.",
        404: "There is no such restoration.",
        408: "The upload stopped.",
        409: "It is not ready, or a request with the same key is being read.",
        413: "The upload is too large, or the photo has too many pixels.",
        415: "The file is of a kind that is not read.",
        422: "The photo or a reference cannot be read.",
        429: "The queue is full; Retry-After says when to try again.",
        502: "The server failed.",
        503: "The server is away or busy; Retry-After says when to try again.",
        504: "It took too long.",
    }
    return {one: {"description": words[one], "content": content} for one in statuses}


def upload_form(references: int) -> dict[str, Any]:
    """OpenAPI's description of the form; the route reads it itself, after the checks."""
    picture = {"type": "string", "format": "binary"}
    options = Options.model_json_schema()
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "oneOf": [{"required": ["photo"]}, {"required": ["again"]}],
                        "properties": {
                            "photo": {**picture, "description": "The photo's file."},
                            "again": {
                                "type": "string",
                                "description": "Instead of photo: the id of an earlier "
                                "restoration whose photo is taken again.",
                            },
                            "keep": {
                                "type": "array",
                                "items": {"enum": list(KEEP)},
                                "description": "With again: what else of the earlier restoration "
                                "is taken again.",
                            },
                            "reference": {
                                "type": "array",
                                "maxItems": references,
                                "items": picture,
                                "description": "Colour photos to take the colours from.",
                            },
                            "mask": {
                                **picture,
                                "description": "A picture of the photo's shape, white where it is "
                                "damaged: filled beside what is found.",
                            },
                            "library": {
                                "type": "array",
                                "maxItems": references,
                                "items": {"type": "string"},
                                "description": "Names of pictures of the server's library.",
                            },
                            "options": {**options, "description": "A JSON object."},
                        },
                    },
                    "encoding": {"options": {"contentType": "application/json"}},
                    "examples": {
                        "automatic": {"value": {"photo": "old.jpg"}},
                        "grey": {
                            "value": {"photo": "old.jpg", "options": '{"color": false}'},
                        },
                    },
                }
            },
        }
    }
