"""Draw scenes of textured, coloured shapes with exact instance masks; numpy and Pillow only.

Shapes are polygons in the unit square, so that a scene's truth can be written as COCO polygons. Later
shapes cover earlier ones; an object that ends up mostly hidden is dropped from the truth and the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Polygon = list[tuple[float, float]]
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 44),
    "green": (52, 160, 70),
    "blue": (50, 92, 210),
    "yellow": (238, 208, 52),
    "orange": (240, 136, 38),
    "purple": (140, 66, 180),
    "cyan": (64, 196, 208),
    "pink": (240, 130, 180),
    "white": (240, 240, 240),
    "black": (28, 28, 30),
}
SUPERSAMPLING = 3  # edges are drawn this many times larger, then averaged


def _regular(sides: int, turn: float = 0.0) -> Polygon:
    return [
        (math.sin(2 * math.pi * (i / sides) + turn), -math.cos(2 * math.pi * (i / sides) + turn)) for i in range(sides)
    ]


def _star(points: int, inner: float) -> Polygon:
    corners = _regular(2 * points)
    return [(x * (inner if i % 2 else 1.0), y * (inner if i % 2 else 1.0)) for i, (x, y) in enumerate(corners)]


def _heart() -> Polygon:
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 17
    return [(float(a), float(b)) for a, b in zip(x, y + 0.1, strict=True)]


def _crescent() -> Polygon:
    outer = [(math.sin(a), -math.cos(a)) for a in np.linspace(-0.6, math.pi + 0.6, 30)]
    inner = [(math.sin(a) * 0.8 - 0.42, -math.cos(a) * 0.72) for a in np.linspace(math.pi + 0.2, -0.2, 30)]
    return [(x + 0.2, y) for x, y in outer + inner]


def _cross(arm: float) -> Polygon:
    a = arm
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _gear(teeth: int) -> Polygon:
    corners = _regular(4 * teeth)
    return [(x * (1.0 if i % 4 < 2 else 0.74), y * (1.0 if i % 4 < 2 else 0.74)) for i, (x, y) in enumerate(corners)]


# Outlines in [-1, 1]^2, y down. KNOWN is what sam3-tiny learns; NOVEL is kept from it for demos and tests.
KNOWN: dict[str, Polygon] = {
    "circle": _regular(40),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": _regular(3),
    "star": _star(5, 0.42),
    "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "hexagon": _regular(6),
    "ellipse": [(x, 0.55 * y) for x, y in _regular(36)],
    "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
    "arrow": [(-1, -0.28), (0.1, -0.28), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.28), (-1, 0.28)],
    "moon": _crescent(),
    "house": [(0, -1), (0.85, -0.2), (0.85, 0.85), (-0.85, 0.85), (-0.85, -0.2)],
    "bolt": [(0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)],
}
NOVEL: dict[str, Polygon] = {"heart": _heart(), "cross": _cross(0.33), "gear": _gear(8)}
SHAPES = {**KNOWN, **NOVEL}


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape. `polygon` is in pixels of the scene; `mask` (H, W) bool is what remains visible."""

    shape: str
    colour: str
    polygon: Polygon
    mask: NDArray[np.bool_]

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Tight box of the visible part, in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True)
class Scene:
    """A picture, (H, W, 3) uint8, and its objects."""

    pixels: NDArray[np.uint8]
    objects: list[SceneObject]


def draw_scene(
    rng: np.random.Generator,
    *,
    size: int = 140,
    shapes: list[str] | None = None,
    count: tuple[int, int] = (1, 4),
    radius: tuple[float, float] = (0.1, 0.24),
    overlap: float = 0.12,
    clutter: float = 1.0,
) -> Scene:
    """Draw one scene.

    Args:
        size: side in pixels.
        shapes: names to draw from (default: all of `KNOWN`).
        count: least and most objects.
        radius: least and most half-extent of an object, as a fraction of `size`.
        overlap: an object is placed only if it hides at most this fraction of any other.
        clutter: 0 draws flat colours on a plain ground, 1 full textures, blur and noise.
    """
    names = shapes or list(KNOWN)
    canvas = _background(rng, size, clutter)
    placed: list[SceneObject] = []
    wanted = int(rng.integers(count[0], count[1] + 1))
    for attempt in range(wanted * 6):
        if len(placed) >= wanted:
            break
        candidate, coverage = _place(rng, size, str(rng.choice(names)), radius, attempt)
        covered = [float((o.mask & candidate.mask).sum()) / float(o.mask.sum()) for o in placed]
        if candidate.mask.sum() < 30 or (covered and max(covered) > overlap):
            continue
        placed = [_without(o, candidate.mask) for o in placed] + [candidate]
        canvas = _paint(rng, canvas, candidate.colour, coverage, clutter)
    image = Image.fromarray(canvas)
    if rng.random() < 0.3 * clutter:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8))))
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, rng.uniform(0, 7 * clutter), (size, size, 3))
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), placed)


def _without(scene_object: SceneObject, cover: NDArray[np.bool_]) -> SceneObject:
    visible = scene_object.mask & ~cover
    return replace(scene_object, mask=visible)


def _place(
    rng: np.random.Generator, size: int, shape: str, radius: tuple[float, float], attempt: int
) -> tuple[SceneObject, NDArray[np.float32]]:
    shrink = 0.93**attempt  # crowded scenes fall back on smaller shapes
    half = size * max(radius[0], float(rng.uniform(*radius)) * shrink)
    turn = float(rng.uniform(-0.45, 0.45))
    stretch = float(rng.uniform(0.85, 1.18))
    centre = rng.uniform(half * 0.9, size - half * 0.9, 2)
    cos, sin = math.cos(turn), math.sin(turn)
    polygon = [
        (
            float(centre[0] + half * (x * stretch * cos - y / stretch * sin)),
            float(centre[1] + half * (x * stretch * sin + y / stretch * cos)),
        )
        for x, y in SHAPES[shape]
    ]
    coverage = _rasterise(polygon, size)
    return SceneObject(shape, str(rng.choice(list(COLOURS))), polygon, coverage >= 0.5), coverage


def _rasterise(polygon: Polygon, size: int) -> NDArray[np.float32]:
    """Coverage of each pixel by the polygon, (size, size) in [0, 1]."""
    large = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    ImageDraw.Draw(large).polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in polygon], fill=255)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255.0


def _paint(
    rng: np.random.Generator, canvas: NDArray[np.uint8], colour: str, coverage: NDArray[np.float32], clutter: float
) -> NDArray[np.uint8]:
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = coverage[window][..., None]
    tone = np.asarray(COLOURS[colour], dtype=np.float32) + rng.normal(0, 9, 3)
    fill = tone * _texture(rng, alpha.shape[:2], strength=0.22 * clutter)[..., None]
    painted = canvas.copy()
    painted[window] = np.clip(canvas[window] * (1 - alpha) + fill * alpha, 0, 255).astype(np.uint8)
    return painted


def _texture(rng: np.random.Generator, shape: tuple[int, ...], strength: float) -> NDArray[np.float32]:
    """Brightness factors of the given (H, W) around 1: plain, striped, chequered, graded or blotchy."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    kind = int(rng.integers(0, 5))
    angle, period = float(rng.uniform(0, math.pi)), float(rng.uniform(5, 14))
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == 0:
        pattern = np.zeros(shape, np.float32)
    elif kind == 1:
        pattern = np.sign(np.sin(2 * math.pi * along / period))
    elif kind == 2:
        pattern = np.sign(np.sin(2 * math.pi * x / period) * np.sin(2 * math.pi * y / period))
    elif kind == 3:
        pattern = 2 * (along - along.min()) / max(1.0, float(np.ptp(along))) - 1
    else:
        coarse = Image.fromarray(rng.normal(0, 0.7, (shape[0] // 10 + 2, shape[1] // 10 + 2)).astype(np.float32))
        pattern = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return (1 + strength * float(rng.uniform(0.3, 1)) * pattern).astype(np.float32)


def _background(rng: np.random.Generator, size: int, clutter: float) -> NDArray[np.uint8]:
    base = rng.uniform(40, 215) + rng.normal(0, 14, 3)
    shade = _texture(rng, (size, size), strength=0.3 * clutter)[..., None]
    return np.clip(base * shade, 0, 255).astype(np.uint8)
