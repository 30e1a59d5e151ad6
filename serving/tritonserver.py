"""The console script `tritonserver`: a real server from the PATH, else the embedded one.

`tritonserver --model-repository model_repository` works as typed; every flag of tritonserver
passes through. What is added is said in `launcher.default_words`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pikfix.serving.errors import ServingError
from pikfix.serving.launcher import fail, launch


def main(words: Sequence[str] | None = None) -> int:
    """Run tritonserver with these command-line words; the exit code for sys.exit."""
    try:
        return launch(
            sys.argv[1:] if words is None else words,
            warn=lambda message: fail(f"warning: {message}"),
        )
    except ServingError as error:
        fail(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
