"""Tensors of files: what clients send and get, and what the steps that are code tell each other."""

from __future__ import annotations

from pikfix.systems.base import TensorSpec

PHOTO = TensorSpec("photo", (1,), "BYTES")
REFERENCE = TensorSpec("reference", ("R",), "BYTES", optional=True)
MASK = TensorSpec("mask", (1,), "BYTES", optional=True)
OPTIONS = TensorSpec("options", (1,), "BYTES", optional=True)
PHOTO_INFO = TensorSpec("photo_info", (1,), "BYTES")
RESULT = TensorSpec("result", (1,), "BYTES")
REPORT = TensorSpec("report", (1,), "BYTES")
