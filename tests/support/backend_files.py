"""Loads a python-based backend's file as Triton's stub would, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pikfix.serving import embedded


def load_backend(path: Path) -> ModuleType:
    """The backend at `path`, with Triton's own module from the wheel."""
    wheel = embedded.wheel()
    assert wheel is not None and wheel.root is not None
    name = f"{path.parent.name}_backend"
    sys.path.insert(0, str(wheel.root / "backends/python"))
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
