from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what compiles for minutes, unless it is asked for."""
    if "packages" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="compiles for minutes: run with -m packages")
    for item in items:
        if item.get_closest_marker("packages"):
            item.add_marker(skip)
