"""The options of a restoration: those of the client, read from its own signature."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pikfix.client import AsyncPikFixClient
from pikfix.gateway.problems import Problem

_PLAIN = (bool, int, float, str, type(None))


def _is_plain(kind: Any) -> bool:
    """Whether values of a type are plain JSON: no picture, no path."""
    if typing.get_origin(kind) is Literal:
        return True
    arguments = typing.get_args(kind)
    return all(map(_is_plain, arguments)) if arguments else kind in _PLAIN


def _kind_of(annotation: str) -> Any:
    """The type of a parameter; None where it is none of JSON's, as those that take pictures."""
    try:
        kind = eval(annotation, AsyncPikFixClient.restore.__globals__)
    except (NameError, TypeError):  # an alias for type checkers alone
        return None
    return kind if _is_plain(kind) else None


def _model() -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, one in inspect.signature(AsyncPikFixClient.restore).parameters.items():
        kind = _kind_of(one.annotation)
        # How long to wait is the gateway's to say.
        if one.kind is one.KEYWORD_ONLY and name != "timeout" and kind is not None:
            fields[name] = (kind, one.default)
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("Options", __config__=config, **fields)


Options = _model()
"""A model with a field for each keyword of ``AsyncPikFixClient.restore`` that is plain JSON."""

SYSTEMS: tuple[str, ...] = typing.get_args(Options.model_fields["system"].annotation)
"""What the option `system` may be, the default first."""


def read_options(text: str | None) -> dict[str, Any]:
    """Return the options that a request names.

    Args:
        text: a JSON object; None for none.

    Raises:
        Problem: no JSON object, an option that is unknown, or of another type.
    """
    if text is None or not text.strip():
        return {}
    try:
        return Options.model_validate_json(text).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            what = f"there is no option {place!r}; there are {', '.join(Options.model_fields)}"
        elif place:
            what = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        else:
            what = f'give a JSON object, such as {{"color": false}} ({first["msg"]})'
        raise Problem(400, "bad_options", "An option cannot be used", what) from error
