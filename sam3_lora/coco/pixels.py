"""From an opened image of any kind to upright 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sam3_lora.coco.images import EXIF_ORIENTATION, QUARTER_TURNS

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_to_turn(image: Image.Image, size: tuple[int, int] | None) -> bool:
    """Whether the image is to be turned as EXIF says.

    Args:
        size: (width, height) that the annotations assume. Where it is the size of the *unturned* image, the
            image is left unturned, so that pixels and annotations agree.
    """
    turned = image.getexif().get(EXIF_ORIENTATION) in QUARTER_TURNS
    return not (turned and size is not None and size == image.size and size != image.size[::-1])


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
