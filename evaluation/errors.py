"""What an evaluation cannot do, in one line for its user."""


class EvaluationError(ValueError):
    """A folder, a photo or a reference cannot be used; the message says why and what to do."""
