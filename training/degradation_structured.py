"""Structured defects: cracks, scratches, dust, creases, stains, paper texture, holes, torn edges.

Each function returns the layers that paint one kind of defect; `degrade` blends them. Published
texture libraries are private, so that all of it is procedural: jagged lines, isolines of fractal
noise, thresholded fields. The blending modes and the opacity U(0.3, 1) are those of "Bringing Old
Photos Back to Life" (Wan et al., CVPR 2020) and of the Pik-Fix synthesis (Xu et al., WACV 2023,
sec. 4): addition, lighten-only, screen; white polygons for lost parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pikfix.training.degradation_fields import (
    Array,
    LineCanvas,
    Points,
    drawn,
    fractal_noise,
    grain,
    jagged_line,
    smooth_noise,
)
from pikfix.training.degradation_unstructured import Scale

Mode = Literal["normal", "add", "lighten", "screen", "multiply"]
PAPER = (1.0, 0.975, 0.92)
BROWN = (0.62, 0.47, 0.3)
NEUTRAL = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Layer:
    """Something painted over the photo.

    coverage: [H, W] in [0, 1], how much of each pixel it covers ("add": signed amounts).
    shade: its grey value in [0, 1], one number or [H, W].
    mode: how it is blended. opacity: in [0, 1], multiplies the coverage.
    tint: RGB factors of the shade, used for colour pictures.
    defect: whether it counts in the defect mask (paper texture lies everywhere and does not).
    """

    coverage: Array
    shade: float | Array = 1.0
    mode: Mode = "normal"
    opacity: float = 1.0
    tint: tuple[float, float, float] = NEUTRAL
    defect: bool = True


Defect = Callable[[int, int, np.random.Generator, Scale], list[Layer]]


def _opacity(rng: np.random.Generator, scale: Scale) -> float:
    return float(rng.uniform(0.3, 1.0) * min(1.0, 0.4 + 0.6 * scale.strength))


def _bright_mode(rng: np.random.Generator) -> Mode:
    modes: tuple[Mode, ...] = ("normal", "add", "lighten", "screen")
    return modes[int(rng.integers(4))]


def _density(height: int, width: int, scale: Scale) -> float:
    """Factor for counts, so that a picture of any shape has as many defects per area."""
    return height * width / (256.0 * scale.pixels) ** 2 * scale.strength


def _grow_crack(
    canvas: LineCanvas,
    rng: np.random.Generator,
    start: Points,
    *,
    angle: float,
    length: float,
    width: float,
    depth: int,
) -> None:
    """Draw a jagged line that thins out along its way and its branches."""
    end = start + length * np.array([np.cos(angle), np.sin(angle)])
    points = jagged_line(rng, start.tolist(), end.tolist(), 0.12, 5)
    pieces = 4
    step = (len(points) - 1) // pieces
    for i in range(pieces):
        thin = width * (1.0 - 0.6 * i / pieces) * rng.uniform(0.6, 1.4)
        canvas.line(points[i * step : (i + 1) * step + 1], thin, rng.uniform(0.75, 1.0))
    if depth == 0:
        return
    for _ in range(int(rng.integers(1, 4))):
        branch = points[int(rng.integers(2, len(points) - 1))]
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 1.3)
        _grow_crack(
            canvas,
            rng,
            branch,
            angle=angle + turn,
            length=length * rng.uniform(0.3, 0.6),
            width=0.7 * width,
            depth=depth - 1,
        )


def cracks(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Branching cracks of the emulsion, bright with a thin shadow beside them."""
    canvas = LineCanvas(height, width)
    size = np.array([width, height], dtype=np.float64)
    for _ in range(1 + rng.poisson(1.5 * _density(height, width, scale))):
        if rng.random() < 0.6:  # from the border, where prints are bent
            side = rng.integers(4)
            t = rng.uniform(0.0, 1.0)
            start = np.array([(t, 0.0), (1.0, t), (t, 1.0), (0.0, t)][side]) * size
            angle = [0.5, 1.0, -0.5, 0.0][side] * np.pi + rng.uniform(-0.9, 0.9)
        else:
            start = rng.uniform(0.0, 1.0, 2) * np.array([width, height], dtype=np.float64)
            angle = rng.uniform(-np.pi, np.pi)
        length = rng.uniform(25.0, 170.0) * scale.pixels
        thickness = rng.uniform(0.6, 2.2) * scale.pixels
        _grow_crack(canvas, rng, start, angle=angle, length=length, width=thickness, depth=2)
    coverage = canvas.coverage()
    opacity = _opacity(rng, scale)
    shift = max(1, round(scale.pixels))
    shadow = np.zeros_like(coverage)
    shadow[shift:, shift:] = coverage[:-shift, :-shift]
    return [
        Layer(shadow, 0.1, "normal", 0.6 * opacity * float(rng.random()), BROWN),
        Layer(coverage, rng.uniform(0.8, 1.0), _bright_mode(rng), opacity, PAPER),
    ]


def craquelure(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Draw a net of hairline cracks over a part of the photo: the borders of Voronoi cells."""
    cell = rng.uniform(14.0, 45.0) * scale.pixels
    y = np.arange(height, dtype=np.float32)[:, None] / np.float32(cell)
    x = np.arange(width, dtype=np.float32) / np.float32(cell)
    bend = fractal_noise(rng, height, width, cell / 2, 3) - np.float32(0.5)
    y, x = y + np.float32(0.5) * bend, x - np.float32(0.5) * bend
    row, column = np.floor(y).astype(np.intp) + 3, np.floor(x).astype(np.intp) + 3
    rows, columns = int(row.max()) + 3, int(column.max()) + 3
    site_y = rng.random((rows, columns), dtype=np.float32)
    site_y += np.arange(-3, rows - 3, dtype=np.float32)[:, None]
    site_x = rng.random((rows, columns), dtype=np.float32)
    site_x += np.arange(-3, columns - 3, dtype=np.float32)
    nearest = np.full((height, width), 9.0, dtype=np.float32)
    second = nearest.copy()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            index = (row + i) * columns + (column + j)
            dy, dx = site_y.take(index) - y, site_x.take(index) - x
            distance = np.sqrt(dy * dy + dx * dx)
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    gap = (second - nearest) * np.float32(0.5 * cell)  # about the pixels to the cell's border
    where = fractal_noise(rng, height, width, 0.4 * max(height, width), 4)
    where = np.clip((where - np.float32(rng.uniform(0.4, 0.6))) * 5, 0.0, 1.0)
    half = np.float32(rng.uniform(0.1, 0.45) * scale.pixels) * (np.float32(0.3) + where)
    coverage = np.clip(half + np.float32(0.5) - gap, 0.0, 1.0) * where
    return [Layer(coverage, rng.uniform(0.75, 1.0), _bright_mode(rng), _opacity(rng, scale), PAPER)]


def scratches(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Thin, nearly straight lines, broken along their way, bright or dark, often parallel."""
    layers = []
    fade = smooth_noise(rng, height, width, rng.uniform(10.0, 60.0) * scale.pixels)
    fade = np.clip((fade - np.float32(rng.uniform(0.0, 0.45))) * 3, 0.0, 1.0)
    main = rng.choice([0.5 * np.pi, 0.5 * np.pi, 0.0, rng.uniform(0.0, np.pi)])
    spread = rng.choice([0.03, 0.2, 1.5])
    for bright in (True, False):
        canvas = LineCanvas(height, width)
        count = rng.poisson((5.0 if bright else 1.5) * _density(height, width, scale))
        for _ in range(count):
            angle = main + rng.normal(0.0, spread)
            length = _length(rng, height, width)
            middle = rng.uniform(0.0, 1.0, 2) * np.array([width, height], dtype=np.float64)
            half = 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
            line = jagged_line(rng, (middle - half).tolist(), (middle + half).tolist(), 0.008, 4)
            thickness = min(rng.gamma(2.0, 0.4) + 0.25, 2.5) * scale.pixels
            canvas.line(line, thickness, rng.uniform(0.4, 1.0))
        if count:
            mode = _bright_mode(rng) if bright else "normal"
            shade = rng.uniform(0.8, 1.0) if bright else rng.uniform(0.0, 0.2)
            coverage = canvas.coverage() * fade
            layers.append(Layer(coverage, shade, mode, _opacity(rng, scale), PAPER))
    return layers


def _length(rng: np.random.Generator, height: int, width: int) -> float:
    """Length of a scratch: most are short, some cross the whole photo."""
    return float(max(height, width) * min(1.5, 0.05 + rng.exponential(0.35)))


def dust(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Specks, many tiny and a few large, and curled fibres; bright or dark."""
    layers = []
    p = scale.pixels
    for bright in (True, False):
        canvas = LineCanvas(height, width)
        density = _density(height, width, scale) * (1.0 if bright else 0.5)
        for _ in range(rng.poisson(rng.choice([12.0, 35.0, 90.0]) * density)):
            x, y = rng.uniform(0.0, width), rng.uniform(0.0, height)
            r = min(0.35 + rng.exponential(0.45), 4.0) * p
            level = rng.uniform(0.4, 1.0)
            if r < 1.2 * p:
                canvas.ellipse(x, y, r, r * rng.uniform(0.6, 1.4), level)
            else:
                canvas.polygon(_blob(rng, np.array([x, y]), r, 9), level)
        for _ in range(rng.poisson(2.0 * density)):
            canvas.line(_fibre(rng, width, height, p), rng.uniform(0.4, 0.9) * p)
        mode = _bright_mode(rng) if bright else "normal"
        shade = rng.uniform(0.8, 1.0) if bright else rng.uniform(0.0, 0.25)
        layers.append(Layer(canvas.coverage(), shade, mode, _opacity(rng, scale), PAPER))
    return layers


def _fibre(rng: np.random.Generator, width: int, height: int, pixels: float) -> Points:
    """Return a curl: a short arc whose curvature changes along its way."""
    n = 14
    turns = np.cumsum(rng.normal(rng.normal(0.0, 0.2), 0.2, n))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    rotation = rng.uniform(0.0, 2 * np.pi)
    cos, sin = np.cos(rotation), np.sin(rotation)
    path = np.cumsum(steps @ np.array([[cos, -sin], [sin, cos]]), axis=0)
    start = rng.uniform(0.0, 1.0, 2) * np.array([width, height], dtype=np.float64)
    return np.asarray(start + path * rng.uniform(0.6, 2.2) * pixels)


def _blob(rng: np.random.Generator, centre: Points, radius: float, corners: int) -> Points:
    """Return an irregular closed outline around `centre`."""
    angles = np.linspace(0.0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0.0, 2 * np.pi)
    radii = radius * np.exp(rng.normal(0.0, 0.35, corners))
    return np.asarray(centre + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def creases(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Draw folds: light on one flank, shadow on the other, emulsion flaked off the ridge."""
    layers = []
    p = scale.pixels
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(1 + (rng.random() < 0.35 * scale.strength)):
        angle = rng.choice([0.0, 0.5, rng.uniform(0.0, 1.0)]) * np.pi + rng.normal(0.0, 0.06)
        normal = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        cx, cy = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        distance = normal[0] * (x - np.float32(cx)) + normal[1] * (y - np.float32(cy))
        wobble = fractal_noise(rng, height, width, 60.0 * p, 4) - np.float32(0.5)
        distance += wobble * np.float32(rng.uniform(3.0, 14.0) * p)
        flank = np.float32(rng.uniform(2.0, 8.0) * p)
        ratio = distance / flank
        relief = ratio * np.exp(np.float32(-0.5) * ratio * ratio)
        relief *= np.float32(rng.choice([-1.0, 1.0]) * rng.uniform(0.08, 0.25))
        opacity = _opacity(rng, scale)
        layers.append(Layer(relief, 1.0, "add", opacity))
        flakes = smooth_noise(rng, height, width, rng.uniform(2.0, 6.0) * p)
        bare = smooth_noise(rng, height, width, rng.uniform(20.0, 60.0) * p)  # bent more or less
        widest = np.float32(rng.uniform(1.0, 4.5) * p)
        edge = (flakes + np.float32(1.5) * bare - np.float32(rng.uniform(0.4, 1.1))) * widest
        coverage = np.clip(edge + np.float32(0.5) - np.abs(distance), 0.0, 1.0)
        layers.append(Layer(coverage, rng.uniform(0.85, 1.0), "normal", opacity, PAPER))
    return layers


def stains(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Blotches with irregular outlines: dark or bleached, some with the rim that water leaves."""
    layers = []
    for _ in range(1 + rng.poisson(0.8 * scale.strength)):
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(rng.uniform(0, height))
        x = np.arange(width, dtype=np.float32) - np.float32(rng.uniform(0, width))
        radius = rng.uniform(0.06, 0.4) * min(height, width)
        stretch = np.float32(np.exp(rng.normal(0.0, 0.3)))
        distance = np.sqrt((x * stretch) ** 2 + (y / stretch) ** 2) / np.float32(radius)
        noise = fractal_noise(rng, height, width, max(2.0, 0.7 * radius), 4)
        distance += (noise - np.float32(0.5)) * np.float32(rng.uniform(0.8, 1.8))
        soft = np.float32(rng.choice([0.06, 0.15, 0.5]))
        inside = np.clip((np.float32(1.0) - distance) / soft, 0.0, 1.0)
        if rng.random() < 0.5:
            rim = np.exp(-(((distance - np.float32(1.0)) / np.float32(0.07)) ** 2))
            inside = np.clip(np.float32(0.45) * inside + np.float32(0.6) * rim, 0.0, 1.0)
        opacity = _opacity(rng, scale) * 0.6
        if rng.random() < 0.6:
            dark = Layer(inside, rng.uniform(0.4, 0.8), "multiply", opacity, (1.12, 0.98, 0.78))
            layers.append(dark)
        else:
            layers.append(Layer(inside, rng.uniform(0.7, 1.0), "normal", opacity * 0.8, PAPER))
    return layers


def paper(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Draw the paper's surface: matte grain, fibres, linen weave or honeycomb silk."""
    p = scale.pixels
    kind = rng.choice(4, p=[0.45, 0.25, 0.15, 0.15])
    amount = rng.uniform(0.05, 0.22) * scale.strength
    if kind == 0:
        relief = grain(rng, height, width, rng.uniform(1.3, 3.0) * p) * np.float32(0.35)
    elif kind == 1:  # fibres: noise drawn out along one direction
        amount *= 0.6
        long, short = rng.uniform(10.0, 30.0) * p, rng.uniform(1.0, 2.0) * p
        rows, columns = (long, short) if rng.random() < 0.5 else (short, long)
        stretched = smooth_noise(rng, max(2, round(height / rows)), width, columns)
        index = np.linspace(0, len(stretched) - 1, height)
        low = np.floor(index).astype(np.intp)
        t = (index - low).astype(np.float32)[:, None]
        high = np.minimum(low + 1, len(stretched) - 1)
        relief = (1 - t) * stretched[low] + t * stretched[high] - np.float32(0.5)
    else:
        y = np.arange(height, dtype=np.float32)[:, None]
        x = np.arange(width, dtype=np.float32)
        pitch = np.float32(2 * np.pi / (rng.uniform(3.0, 9.0) * p))
        if kind == 2:  # linen
            relief = np.float32(0.3) * (np.sin(x * pitch) + np.sin(y * pitch))
        else:  # silk: three waves at 60 degrees make a hexagonal lattice
            half, tall = np.float32(0.5), np.float32(np.sqrt(0.75))
            relief = np.float32(0.25) * (
                np.cos(x * pitch)
                + np.cos((half * x + tall * y) * pitch)
                + np.cos((half * x - tall * y) * pitch)
            )
        relief = relief * (np.float32(0.4) + smooth_noise(rng, height, width, 40.0 * p))
        amount *= 0.5  # a regular pattern shows at a lower contrast
    relief = np.asarray(relief, dtype=np.float32)
    return [Layer(relief, 1.0, "add", float(min(1.0, amount)), defect=False)]


def halftone(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Draw the dot screen of a printed photo (newspaper), at 45 degrees."""
    pitch = rng.uniform(2.4, 4.5) * scale.pixels
    k = np.float32(2 * np.pi / (pitch * np.sqrt(2.0)))
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    dots = np.float32(0.5) * (np.cos((x + y) * k) + np.cos((x - y) * k))
    return [Layer(dots, 1.0, "add", float(rng.uniform(0.06, 0.25) * scale.strength), defect=False)]


def holes(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Lost parts of the emulsion: jagged patches of pure white."""

    def draw(canvas: LineCanvas) -> None:
        for _ in range(1 + rng.poisson(1.2 * scale.strength)):
            n = int(rng.integers(5, 9))
            radius = min(rng.uniform(3.0, 8.0) + rng.exponential(7.0), 34.0) * scale.pixels
            centre = rng.uniform(0.0, 1.0, 2) * np.array([width, height], dtype=np.float64)
            canvas.polygon(_ragged(rng, _blob(rng, centre, radius, n)))

    return [Layer(drawn(height, width, draw))]


def torn_edges(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Corners and pieces of the border torn off: pure white behind a jagged edge.

    The removed area stays under a twentieth of the photo each time, as in the published synthesis.
    """

    def draw(canvas: LineCanvas) -> None:
        for _ in range(1 + int(rng.random() < 0.4 * scale.strength)):
            across, down = rng.uniform(0.06, 0.3, 2)
            if rng.random() < 0.65:  # a corner
                line = jagged_line(rng, (across, 0.0), (0.0, down), 0.09, 6)
                outside = np.array([(-0.2, down), (-0.2, -0.2), (across, -0.2)])
                shape: Points = np.vstack([line, outside])
            else:  # a bite out of one side
                middle, half = rng.uniform(0.2, 0.8), across / 2
                bottom = (middle + rng.uniform(-half, half), down / 3)
                left = jagged_line(rng, (middle - half, 0.0), bottom, 0.09, 5)
                right = jagged_line(rng, bottom, (middle + half, 0.0), 0.09, 5)
                outside = np.array([(middle + half, -0.2), (middle - half, -0.2)])
                shape = np.vstack([left, right, outside])
                if rng.random() < 0.5:
                    shape = shape[:, ::-1]
            if rng.random() < 0.5:
                shape[:, 0] = 1.0 - shape[:, 0]
            if rng.random() < 0.5:
                shape[:, 1] = 1.0 - shape[:, 1]
            outline: Points = shape * np.array([width, height], dtype=np.float64)
            canvas.polygon(outline)

    return [Layer(drawn(height, width, draw))]


def worn_edges(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Rub the emulsion off along the border, most at the corners: bare paper."""
    y = np.abs(np.linspace(-1.0, 1.0, height, dtype=np.float32))[:, None]
    x = np.abs(np.linspace(-1.0, 1.0, width, dtype=np.float32))
    depth = np.maximum(x, y) + np.float32(0.1) * (x * y) ** 4  # 1 at the border, 1.1 in a corner
    noise = fractal_noise(rng, height, width, rng.uniform(5.0, 25.0) * scale.pixels, 4)
    threshold = np.float32(rng.uniform(1.0, 1.07))
    wear = depth + np.float32(0.2) * (noise - np.float32(0.5)) - threshold
    coverage = np.clip(wear * np.float32(0.5 * min(height, width) / scale.pixels), 0.0, 1.0)
    shade = np.float32(0.85) + np.float32(0.15) * noise
    return [Layer(coverage, shade, "normal", _opacity(rng, scale), PAPER)]


def _ragged(rng: np.random.Generator, corners: Points) -> Points:
    """Replace each side of a polygon by a jagged line."""
    following = np.roll(corners, -1, axis=0)
    sides = [
        jagged_line(rng, a.tolist(), b.tolist(), 0.1, 4)[:-1]
        for a, b in zip(corners, following, strict=True)
    ]
    return np.vstack(sides)


SURFACE: dict[str, Defect] = {
    "paper": paper,
    "halftone": halftone,
    "stains": stains,
    "creases": creases,
    "craquelure": craquelure,
    "worn_edges": worn_edges,
    "cracks": cracks,
    "scratches": scratches,
    "dust": dust,
}
"""Defects blended over the photo, from the lowest to the highest."""

LOSSES: dict[str, Defect] = {"holes": holes, "torn_edges": torn_edges}
"""Defects that leave nothing of the photo; always applied last, so that they stay pure white."""
