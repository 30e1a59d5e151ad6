"""Options that several commands share, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def parameters_of(
    function: Callable[..., Any], leave_out: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """Return a function's parameters, each of which is one option of a command."""
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: one for name, one in parameters.items() if name not in leave_out}


def spliced(
    command: Callable[..., None],
    name: str,
    options: Mapping[str, inspect.Parameter],
    make: Callable[..., Any],
) -> Callable[..., None]:
    """Return a command that has several options in place of one parameter.

    Args:
        command: has the parameter.
        name: of the parameter.
        options: what the command line gets instead.
        make: called with the options' values; what it returns is the parameter's value.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        chosen = {key: values.pop(key) for key in options}
        command(**values, **{name: make(**chosen)})

    parameters: list[inspect.Parameter] = []
    for key, parameter in parameters_of(command).items():
        parameters += options.values() if key == name else [parameter]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
    return wrapped
