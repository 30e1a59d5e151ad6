"""The systems that a photo passes on its way, one after another, and the requests that it takes.

`latent+pikfix` mends a photo by translation and then colours it: the second system gets what the
first has answered, without loss, and restores nothing a second time.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

from pikfix.client._errors import InvalidOptionsError
from pikfix.client._inputs import PhotoLike, check_options
from pikfix.client._requests import Request, photo_request
from pikfix.client._results import RestoredPhoto
from pikfix.protocol.options import FORMATS
from pikfix.protocol.report import NOTHING_DONE, Report, StepSeconds

Passes = Generator[Request, RestoredPhoto, RestoredPhoto]
"""Gives requests, takes the answer to each, and returns the result."""

SystemName: TypeAlias = Literal["pikfix", "latent", "latent+pikfix"]
"""A system, or one after the other."""

_CHAINS = get_args(SystemName)

_BETWEEN = "png"
"""Format of what one system hands to the next: it loses nothing."""


def systems_of(system: str) -> tuple[str, ...]:
    """The systems of a name, or of several that are joined by a plus sign.

    Raises:
        InvalidOptionsError: there is no such system, or nothing to be gained by that order.
    """
    if not isinstance(system, str) or system not in _CHAINS:
        raise InvalidOptionsError(f"system must be one of {', '.join(_CHAINS)}, got {system!r}")
    return tuple(system.split("+"))


def passes(
    photo: PhotoLike,
    reference: PhotoLike | Sequence[PhotoLike] | None,
    options: Mapping[str, Any],
    *,
    system: str,
    mask: PhotoLike | None,
    limit: int,
) -> Passes:
    """The requests of one call of `PikFixClient.restore`, whose arguments these are."""
    first, *others = systems_of(system)
    if not others:
        return (
            yield photo_request(photo, reference, options, system=first, mask=mask, limit=limit)
        )
    (second,) = others
    check_options(options)
    # Colours are the second's.
    early = {**options, "format": _BETWEEN, "force_color": False, "color_strength": 1.0}
    request = photo_request(photo, None, early, system=first, mask=mask, limit=limit)
    restored = yield request
    late = {**options, "strength": 0.0}
    if late["format"] is None:
        # The photo's own, as if there had been one request.
        own = restored.report.photo.format
        late["format"] = own if own in FORMATS and not request.here else _BETWEEN
    request = photo_request(restored.data, reference, late, system=second, limit=limit)
    return _joined(restored, (yield request))


def seconds_left(seconds: float | None, since: float) -> float | None:
    """What remains of a time limit; None for none.

    Args:
        seconds: in all.
        since: `time.monotonic()` at the beginning.
    """
    return None if seconds is None else max(seconds - (time.monotonic() - since), 1e-3)


def _joined(first: RestoredPhoto, second: RestoredPhoto) -> RestoredPhoto:
    """The second's result with a report on both."""
    one, two = first.report, second.report
    report: Report = replace(
        two,
        photo=one.photo,
        damaged_share=one.damaged_share,
        faces=one.faces,
        system=f"{one.system}+{two.system}",
        model_version=f"{one.model_version}+{two.model_version}",
        # One digest cannot stand for two files; the versions hold the beginning of each.
        model_sha256=None,
        warnings=(*one.warnings, *(w for w in two.warnings if w != NOTHING_DONE)),
        seconds=StepSeconds(
            *(
                getattr(one.seconds, name) + getattr(two.seconds, name)
                for name in ("decode_photo", "networks", "encode_photo")
            )
        ),
    )
    return RestoredPhoto(second.data, report)
