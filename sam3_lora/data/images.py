"""Read images as 8-bit RGB, whatever they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3_lora.coco.pixels import is_to_turn, to_rgb
from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def read_rgb(
    path: Path, *, transparent_color: Sequence[int] = (255, 255, 255), size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8, turned as EXIF says.

    Args:
        transparent_color: RGB that transparent pixels are laid on.
        size: (width, height) that the annotations assume; of the unturned image, it is left unturned.

    Raises:
        DatasetError: if the file is missing, no image, damaged, or of another size.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened) if is_to_turn(opened, size) else opened
            image = to_rgb(upright, transparent_color)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read image {path.name}: {error}") from error
    if size is not None and image.size != size:
        raise DatasetError(f"{path.name} is {image.size[0]} x {image.size[1]}, its record says {size[0]} x {size[1]}")
    return np.asarray(image)
