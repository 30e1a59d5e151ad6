"""The models that clients call."""

PHOTO_MODEL = "pikfix_photo"
"""Picture files in, a picture file and a report out."""
TENSOR_MODEL = "pikfix"
"""The networks alone: tensors in and out."""

DEFAULT_SYSTEM = "pikfix"
"""Where nobody names one."""

PHOTO_MODELS = {"pikfix": PHOTO_MODEL, "latent": "latent_photo"}
"""Of every system, what takes picture files and gives a picture file and a report."""

ANSWERS = {"pikfix": "restored_l", "latent": "restored_rgb"}
"""Of every system, the tensor that its networks answer a photo with."""
