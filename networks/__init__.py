"""The Pik-Fix networks: restoration, similarity and colorization, their colours and checkpoints."""

from pikfix.networks.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from pikfix.networks.color import AB_SCALE, lab_to_rgb, rgb_to_lab
from pikfix.networks.config import PRESETS, PYRAMID_LEVELS, PikFixConfig
from pikfix.networks.model import PikFix, PikFixOutput, to_working
from pikfix.networks.resnet import load_torchvision_resnet
from pikfix.networks.sizes import SIDE_MULTIPLE, WORKING_LIMIT, working_size

__all__ = [
    "AB_SCALE",
    "PRESETS",
    "PYRAMID_LEVELS",
    "SIDE_MULTIPLE",
    "WORKING_LIMIT",
    "CheckpointError",
    "PikFix",
    "PikFixConfig",
    "PikFixOutput",
    "lab_to_rgb",
    "load_checkpoint",
    "load_torchvision_resnet",
    "read_metadata",
    "rgb_to_lab",
    "save_checkpoint",
    "to_working",
    "working_size",
]
