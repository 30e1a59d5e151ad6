"""The error of an evaluation, in one line for its user."""


class EvaluationError(ValueError):
    """A folder, a photo or a reference cannot be used; the message says why and what to do."""
