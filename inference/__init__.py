"""Inference: trained networks in the forms that serve them, by the kinds of their layers."""

from pikfix.inference.forms import (
    ReducedSimilarity,
    keep_free_memory,
    lower,
)
from pikfix.inference.step import InferenceStep, kernel_form, load_step, save_step

__all__ = [
    "InferenceStep",
    "ReducedSimilarity",
    "keep_free_memory",
    "kernel_form",
    "load_step",
    "lower",
    "save_step",
]
