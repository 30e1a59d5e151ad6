"""Inference: trained networks in the forms that serve them, by the kinds of their layers."""

from pikfix.inference.forms import (
    ReducedSimilarity,
    keep_free_memory,
    lower,
    reduced_similarity,
)
from pikfix.inference.step import InferenceStep, load_step, save_step

__all__ = [
    "InferenceStep",
    "ReducedSimilarity",
    "keep_free_memory",
    "load_step",
    "lower",
    "reduced_similarity",
    "save_step",
]
