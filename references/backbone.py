"""The deep features that pictures are compared by: VGG-19's, or a checkpoint's own backbone.

A library keeps the weights it was built with, and their digest; nothing else may compare with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pikfix.layers.resnet import ResNetFeatures
from pikfix.layers.vgg import Vgg19Features, load_torchvision_vgg19
from pikfix.references.errors import LibraryError
from pikfix.systems.checkpoint import CheckpointError
from pikfix.systems.pikfix.networks import load_checkpoint

_FORMAT = "pikfix-backbone"


class Backbone:
    """A frozen network that describes a luminance by maps of several levels.

    Attributes:
        kind: "vgg19" or "resnet".
        digest: hexadecimal SHA-256 of architecture and weights.
    """

    def __init__(self, kind: str, network: nn.Module, settings: Mapping[str, Any]) -> None:
        self.kind = kind
        self._settings = dict(settings)
        self._network = network.float().eval().requires_grad_(False)
        self.digest = self._digest()

    @torch.inference_mode()
    def __call__(self, luminance: Tensor) -> list[Tensor]:
        """Maps `[B, C_i, h_i, w_i]`, fine to coarse, of `[B, 1, 256, 256]`, L/50 - 1."""
        if self.kind == "vgg19":
            luminance = ((luminance + 1) / 2).expand(-1, 3, -1, -1)
        maps: list[Tensor] = self._network(luminance)
        return maps

    def to_bytes(self) -> bytes:
        """Architecture and weights as a safetensors file; the inverse of `read_backbone`."""
        tensors = {name: value.contiguous() for name, value in self._network.state_dict().items()}
        metadata = {"format": _FORMAT, "kind": self.kind, "settings": json.dumps(self._settings)}
        return save(tensors, metadata)

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps([self.kind, self._settings], sort_keys=True).encode())
        for name, value in sorted(self._network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_backbone(path: Path) -> Backbone:
    """Load the backbone of a file of weights; what is in it tells which one it is.

    Args:
        path: a pikfix checkpoint, torchvision's VGG-19 weights (safetensors, or a PyTorch state
            dict, loaded without executing anything), or a library's backbone file.

    Raises:
        LibraryError: the file cannot be read or is none of these.
    """
    if not path.is_file():
        raise LibraryError(
            f"{path}: no such file; give a checkpoint or VGG-19 weights with --backbone"
        )
    if path.suffix != ".safetensors":
        return _vgg19(_read_state_dict(path), path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            names = set(file.keys())
            plain = metadata.get("format") == _FORMAT or "features.0.weight" in names
            tensors = {name: file.get_tensor(name) for name in names} if plain else {}
    except (SafetensorError, OSError) as error:
        raise LibraryError(
            f"{path}: not a whole safetensors file ({error}); download or copy it again"
        ) from error
    if metadata.get("format") == _FORMAT:
        return _stored(metadata, tensors, path)
    if plain:
        return _vgg19(tensors, path)
    try:
        model = load_checkpoint(path)
    except CheckpointError as error:
        raise LibraryError(str(error)) from error
    if model.config.similarity == "none":
        raise LibraryError(f"{path}: the checkpoint has no similarity sub-net; use another one")
    settings = {"blocks": model.config.backbone_blocks, "width": model.config.backbone_width}
    return Backbone("resnet", model.similarity.backbone, settings)


def _stored(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> Backbone:
    try:
        settings = json.loads(metadata["settings"])
        network: nn.Module
        if metadata["kind"] == "resnet":
            network = ResNetFeatures(tuple(settings["blocks"]), settings["width"])
        else:
            network = Vgg19Features()
        network.load_state_dict(dict(tensors))
        return Backbone(metadata["kind"], network, settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LibraryError(f"{path}: damaged ({reason}); build the library anew") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each layer of the format has its own errors for a damaged file
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise LibraryError(f"{path}: cannot be read as weights: {reason}") from error
    if not isinstance(state, dict) or "features.0.weight" not in state:
        raise LibraryError(
            f"{path}: neither a pikfix checkpoint nor torchvision's VGG-19 (features.0.weight, ...)"
        )
    return state


def _vgg19(state: Mapping[str, Tensor], path: Path) -> Backbone:
    network = Vgg19Features()
    try:
        load_torchvision_vgg19(network, {name: value.float() for name, value in state.items()})
    except ValueError as error:
        raise LibraryError(f"{path}: {error}") from error
    return Backbone("vgg19", network, {})
