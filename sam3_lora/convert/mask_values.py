"""Mask files as arrays of values, and parts of them as COCO run lengths."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask
from PIL import Image

from sam3_lora.coco.images import TooLargeError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("PNG", "TIFF", "BMP", "WEBP")  # JPEG blurs values
INDEX_MODES = {"L", "P", "I", "I;16", "I;16B", "I;16L"}
MAX_VALUE = 65_535


def read_values(path: Path, max_pixels: int) -> NDArray[Any]:
    """Values (H, W) of a mask, at most `MAX_VALUE`.

    Raises:
        TooLargeError: if it has more pixels.
        ValueError: if its values are no classes or objects.
        Exception: of any kind, if it is damaged.
    """
    with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            message = f"the mask has {image.width} x {image.height} pixels; at most {max_pixels:,} are supported"
            raise TooLargeError(message)
        if image.mode == "1":
            values_HW = np.asarray(image.convert("L")) // 255
        elif image.mode in INDEX_MODES:
            values_HW = np.asarray(image)
        elif image.mode in ("RGB", "RGBA"):
            values_HW = _of_equal_channels(np.asarray(image.convert("RGB")))
        else:
            raise ValueError(f"the mask has values of mode {image.mode}, which are no classes")
    if values_HW.max(initial=0) > MAX_VALUE or values_HW.min(initial=0) < 0:
        raise ValueError(f"the mask has values outside of 0..{MAX_VALUE:,}")
    return values_HW


def _of_equal_channels(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Programs write black and white as colours, too."""
    if (pixels_HW3 != pixels_HW3[..., :1]).any():
        raise ValueError("the mask is in colours; which of them is which class, no file says")
    return pixels_HW3[..., 0]


def run_lengths(part_HW: NDArray[np.bool_], x: int, y: int, shape: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of a part of a mask, whose upper left pixel is (x, y), in an image of `shape`.

    The whole mask is never made: with many parts, that is what takes time.
    """
    height, width = shape
    columns_WH = np.pad(part_HW.T.astype(np.int8), ((0, 0), (1, 1)))
    steps_WH = np.diff(columns_WH, axis=1)
    starts = _positions(steps_WH == 1, x, y, height)
    ends = _positions(steps_WH == -1, x, y, height)
    apart = starts[1:] != ends[:-1]  # a run that ends at the bottom goes on at the top of the next column
    starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    borders = np.empty(2 * len(starts) + 2, dtype=np.int64)
    borders[0], borders[-1], borders[1:-1:2], borders[2:-1:2] = 0, height * width, starts, ends
    counts = np.diff(borders if borders[-2] < borders[-1] else borders[:-1])
    rle = pycocotools.mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def _positions(where_WH: NDArray[np.bool_], x: int, y: int, height: int) -> NDArray[np.int64]:
    columns, rows = np.nonzero(where_WH)
    return (columns + x) * height + rows + y
