"""Extent and area of COCO segmentations in pure Python, and their checks before any C code sees them.

Polygons are flat lists x0, y0, x1, y1, ... in pixels. An RLE has `size` [height, width] and `counts`: run
lengths of zeros and ones in turn, in column-major order, as a list or in COCO's compressed text (six bits
per character from "0": five of the number, one that says that more follow; from the fourth count on, the
difference to the count before last).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Polygons = list[list[float]]
Rle = dict[str, Any]
MAX_COORDINATE = 1_000_000.0
# Mask code allocates per pixel of outline; a comb-shaped outline of few points can ask for gigabytes.
MAX_OUTLINE_PX = 5_000_000
MAX_CHARS_PER_COUNT = 7  # 35 bits


class RleError(ValueError):
    """The run lengths do not describe a mask of the stated size."""


@dataclass(frozen=True)
class Extent:
    """Pixel box (x0, y0) to (x1, y1) around a mask, and the mask's area."""

    x0: float
    y0: float
    x1: float
    y1: float
    area: float

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        return (self.x0, self.y0, self.x1 - self.x0, self.y1 - self.y0)

    def is_outside(self, width: int, height: int) -> bool:
        """Whether no part lies in the image."""
        return self.x1 <= 0 or self.y1 <= 0 or self.x0 >= width or self.y0 >= height

    def overhang(self, width: int, height: int) -> float:
        """Pixels by which the box reaches past the image's edges."""
        return max(-self.x0, -self.y0, self.x1 - width, self.y1 - height, 0.0)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that mask and box code can take: finite and not huge."""
    return type(value) in (int, float) and -MAX_COORDINATE <= value <= MAX_COORDINATE  # type: ignore[operator]


def polygons_extent(polygons: Polygons) -> Extent:
    """Around polygons of checked numbers; the area counts overlaps twice."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    area = sum(map(_shoelace, polygons))
    return Extent(min(xs), min(ys), max(xs), max(ys), area)


def outline_px(polygons: Polygons) -> float:
    """Length of all outlines as mask code counts it: the larger of an edge's width and height."""
    total = 0.0
    for polygon in polygons:
        x0, y0 = polygon[-2:]
        for x1, y1 in zip(polygon[0::2], polygon[1::2], strict=True):
            total += max(abs(x1 - x0), abs(y1 - y0))
            x0, y0 = x1, y1
    return total


def rle_extent(rle: Rle) -> Extent | None:
    """Around the ones of a checked RLE; None if there are none."""
    height = rle["size"][0]
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = decode_counts(counts)
    x0, y0, x1, y1, area, end = math.inf, math.inf, 0, 0, 0, 0
    for index, count in enumerate(counts):
        start, end = end, end + count
        if index % 2 == 0 or count == 0:
            continue
        first, last = start // height, (end - 1) // height
        top, bottom = (start % height, (end - 1) % height) if first == last else (0, height - 1)
        x0, x1 = min(x0, first), max(x1, last + 1)
        y0, y1 = min(y0, top), max(y1, bottom + 1)
        area += count
    return Extent(float(x0), float(y0), float(x1), float(y1), float(area)) if area else None


def check_counts(counts: object, pixels: int) -> None:
    """Check run lengths, as a list or compressed.

    Raises:
        RleError: unless they are whole numbers >= 0 that add up to `pixels`.
    """
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list):
        raise RleError("counts must be a list or a text")
    if not all(type(count) is int and 0 <= count <= pixels for count in counts):
        raise RleError("a run length is not a whole number within the mask")
    total = sum(counts)
    if total != pixels:
        raise RleError(f"the run lengths add up to {total:,}, but the mask has {pixels:,} pixels")


def decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed text.

    Raises:
        RleError: if the text is not of that form.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        code = ord(char) - 48
        if not 0 <= code < 64 or shift >= 5 * MAX_CHARS_PER_COUNT:
            raise RleError("counts is not compressed RLE text")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise RleError("counts ends in the middle of a number")
    return counts


def _shoelace(polygon: list[float]) -> float:
    doubled = 0.0
    x0, y0 = polygon[-2:]
    for x1, y1 in zip(polygon[0::2], polygon[1::2], strict=True):
        doubled += x0 * y1 - x1 * y0
        x0, y0 = x1, y1
    return abs(doubled) / 2
