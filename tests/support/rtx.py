"""TensorRT for RTX where the product's code expects TensorRT."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pikfix.export.profiles import Profile, Range
from pikfix.export.runtimes.engines import EngineOptions

API = "pikfix.export.runtimes.tensorrt_api"
OPTIONS = EngineOptions(version_compatible=False)  # an option that TensorRT for RTX has not


@contextmanager
def tensorrt_for_rtx() -> Iterator[Any]:
    """The module under TensorRT's name; the test is skipped where it is not installed."""
    try:
        found = importlib.import_module("tensorrt_rtx_bindings")
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("TensorRT for RTX is not installed (pip install 'pikfix[rtx]')")
    before = {name: sys.modules.pop(name, None) for name in ("tensorrt", API)}
    sys.modules["tensorrt"] = found
    try:
        yield found
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def built(file: Path, ranges: Mapping[str, Range]) -> bytes:
    """The engine of an ONNX file, built as `pikfix export` does, for ranges of shapes."""
    with tensorrt_for_rtx():
        engine: bytes = importlib.import_module(API).build_from_onnx(
            file, [Profile(dict(ranges))], OPTIONS, name=file.stem, report=lambda line: None
        )
    return engine
