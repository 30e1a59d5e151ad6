"""What clients and steps have agreed on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import typing

import pytest

from pikfix.client._mapping import CODE_ERRORS
from pikfix.protocol.deadline import PARAMETER, deadline_in, lateness, read_deadline
from pikfix.protocol.errors import ErrorCode


def test_the_client_knows_every_code() -> None:
    assert set(CODE_ERRORS) == set(typing.get_args(ErrorCode))


def test_a_deadline_survives_the_way() -> None:
    deadline = read_deadline(json.dumps(deadline_in(5)))
    assert deadline is not None
    assert 4000 < deadline - time.time() * 1000 <= 5000
    assert lateness(deadline) is None


@pytest.mark.parametrize("parameters", [None, "", "{}", '{"other": 1}', f'{{"{PARAMETER}": null}}'])
def test_without_a_deadline_nothing_is_late(parameters: str | None) -> None:
    assert read_deadline(parameters) is None
    assert lateness(None) is None


def test_a_deadline_has_passed_after_its_millisecond() -> None:
    assert lateness(5000, now=5.0) is None
    assert str(lateness(5000, now=5.25)).startswith("the deadline passed 250 ms ago: ")


@pytest.mark.parametrize("value", ['"soon"', "1.5", "true", "[1]"])
def test_a_deadline_of_another_type_is_refused(value: str) -> None:
    with pytest.raises(TypeError, match="must be an integer, Unix time in ms, not"):
        read_deadline(f'{{"{PARAMETER}": {value}}}')


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; from pikfix.protocol import deadline, errors, names;"
        "print([n for n in ('numpy', 'PIL', 'torch', 'tritonclient') if n in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "[]"
