"""Checkpoints to a Triton model repository: contract, export, parity gate, configs, publishing."""

from pikfix.export.errors import ExportError, ParityError
from pikfix.export.exporter import export_checkpoint
from pikfix.export.repository import Manifest, read_manifest

__all__ = ["ExportError", "Manifest", "ParityError", "export_checkpoint", "read_manifest"]
