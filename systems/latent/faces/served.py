"""The generator of faces that a model repository holds, for a step that is code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pikfix.photos import PhotoError
from pikfix.systems.latent.faces.detection import Array, Detector, FacesError, mtcnn
from pikfix.systems.latent.faces.enhance import enhance

SYSTEM = "faces"
"""What the generator is exported as."""
MODEL = "draw_faces"
"""Its step."""
_TENSOR = re.compile(r'^(?:input|output) \{\s*name: "([^"]+)"', re.MULTILINE)


class ServedFaces:
    """Draws faces by the server's own generator.

    Args:
        backend: the module `triton_python_backend_utils`, which exists inside the server only.
        side: of the faces that the generator draws.
        names: of its input and its output, which some servers call by names of their own.
    """

    def __init__(self, backend: Any, side: int, names: tuple[str, str]) -> None:
        self._backend = backend
        self._side = side
        self._face, self._drawn = names
        self._detector: Detector | None = None

    @classmethod
    def of(cls, repository: Path, backend: Any) -> ServedFaces | None:
        """Those of a repository, or None where none were exported into it."""
        try:
            manifest = json.loads((repository / "manifest.json").read_text())
            for one in (manifest, *manifest.get("others", {}).values()):
                if one["checkpoint"].get("system") == SYSTEM:
                    config = (repository / MODEL / "config.pbtxt").read_text()
                    face, drawn = _TENSOR.findall(config)
                    return cls(backend, int(one["checkpoint"]["config"]["side"]), (face, drawn))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def drawn(self, photo_rgb: Array) -> tuple[Array, int]:
        """A photo `[3, H, W]`, (sRGB - 0.5) / 0.5, with its faces drawn anew, and how many.

        Raises:
            PhotoError: the detector is not installed, or the generator gave no answer.
        """
        try:
            self._detector = self._detector or mtcnn()
        except FacesError as error:
            raise PhotoError("missing_package", str(error)) from error
        return enhance(photo_rgb, self._draw, side=self._side, detector=self._detector)

    def _draw(self, faces: Array) -> Array:
        # One at a time: how many an engine takes together is its own affair.
        return np.concatenate([self._ask(face[None]) for face in faces])

    def _ask(self, face: Array) -> Array:
        request = self._backend.InferenceRequest(
            model_name=MODEL,
            requested_output_names=[self._drawn],
            inputs=[self._backend.Tensor(self._face, np.ascontiguousarray(face))],
        )
        answer = request.exec()
        if answer.has_error():
            raise PhotoError("internal", f"{MODEL}: {answer.error().message()}")
        drawn: Array = self._backend.get_output_tensor_by_name(answer, self._drawn).as_numpy()
        return drawn
