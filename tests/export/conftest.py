from __future__ import annotations

import pytest

ON_REQUEST = ("packages", "engines")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what compiles for minutes, unless it is asked for."""
    for marker in ON_REQUEST:
        if marker in (config.option.markexpr or ""):
            continue
        skip = pytest.mark.skip(reason=f"takes minutes: run with -m {marker}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(skip)
