"""The models that clients call."""

PHOTO_MODEL = "pikfix_photo"
"""Picture files in, a picture file and a report out."""
TENSOR_MODEL = "pikfix"
"""The networks alone: tensors in and out."""
