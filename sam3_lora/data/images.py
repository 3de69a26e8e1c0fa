"""Read images as 8-bit RGB, whatever they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_rgb(
    path: Path, *, transparent_color: Sequence[int] = (255, 255, 255), size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8, turned as EXIF says.

    Args:
        transparent_color: RGB that transparent pixels are laid on.
        size: (width, height) that the annotations assume. Where it is the size of the *unturned* image, the
            image is left unturned, so that pixels and annotations agree.

    Raises:
        DatasetError: if the file is missing, no image, damaged, or of another size.
    """
    try:
        with Image.open(path) as opened:
            unturned = opened.size
            turned = opened.getexif().get(EXIF_ORIENTATION) in QUARTER_TURNS
            keep = turned and size is not None and size == unturned and size != unturned[::-1]
            image = to_rgb(opened if keep else ImageOps.exif_transpose(opened), transparent_color)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read image {path.name}: {error}") from error
    if size is not None and image.size != size:
        raise DatasetError(f"{path.name} is {image.size[0]} x {image.size[1]}, its record says {size[0]} x {size[1]}")
    return np.asarray(image)


def to_rgb(image: Image.Image, transparent_color: Sequence[int]) -> Image.Image:
    """Convert any mode to RGB: 16-bit values scaled by their range, transparency laid on a colour."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (*transparent_color, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Pillow would clip 16-bit values at 255; map the values' own range to 0..255 instead."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    span = high - low if high > low else 1.0
    return Image.fromarray(np.round((values - low) / span * 255).astype(np.uint8))
