"""Open one image file under limits and compare it with its record."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, UnidentifiedImageError

from sam3_lora.coco.report import IssueCode, Place

if TYPE_CHECKING:
    from pathlib import Path

    from sam3_lora.coco.schema import ImageRecord, ValidationLimits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
FORMATS_HINT = "supported are JPEG, PNG, WebP, BMP and single-page TIFF"
EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Decoded(NamedTuple):
    """Sizes of an image, as (width, height)."""

    stored: tuple[int, int]
    upright: tuple[int, int]  # after the EXIF orientation


class TooLargeError(Exception):
    """The image is larger than allowed; the text says by how much."""


def check_image(path: Path, record: ImageRecord, limits: ValidationLimits, place: Place) -> str | None:
    """SHA-256 of a usable image's file; None if an error was reported."""
    try:
        if path.stat().st_size > limits.image_bytes:
            raise TooLargeError(f"the file is larger than {limits.image_bytes:,} bytes")
        data = path.read_bytes()
        decoded = decode(data, limits.image_pixels)
    except (TooLargeError, Image.DecompressionBombError) as error:
        place.error(IssueCode.IMAGE_TOO_LARGE, str(error), "scale the image and its annotations down")
        return None
    except UnidentifiedImageError:
        place.error(IssueCode.IMAGE_UNREADABLE, "the file is not an image of a supported format", FORMATS_HINT)
        return None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile files
        message = f"the image cannot be decoded: {error or type(error).__name__}"
        place.error(IssueCode.IMAGE_UNREADABLE, message, "the file is damaged: export or copy it again")
        return None
    return hashlib.sha256(data).hexdigest() if _has_stated_size(decoded, record, place) else None


def decode(data: bytes, max_pixels: int) -> Decoded:
    """Decode every byte of the image, after a look at the size in its header.

    Raises:
        TooLargeError: if it has more pixels.
        UnidentifiedImageError: if it is of none of the `FORMATS`.
        Exception: of any kind, if it is damaged: decoders raise anything on hostile files.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        stored = image.size
        if stored[0] * stored[1] > max_pixels:
            raise TooLargeError(f"the image has {stored[0]} x {stored[1]} pixels; at most {max_pixels:,} are supported")
        if image.format == "TIFF" and _has_second_page(image):
            raise ValueError("a TIFF file with several pages")
        image.draft(None, (stored[0] // 8, stored[1] // 8))  # JPEG: all bytes are read, few pixels are made
        image.load()
        orientation = image.getexif().get(EXIF_ORIENTATION)
    return Decoded(stored, (stored[1], stored[0]) if orientation in QUARTER_TURNS else stored)


def _has_second_page(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _has_stated_size(decoded: Decoded, record: ImageRecord, place: Place) -> bool:
    stated = (record.width, record.height)
    if stated == (0, 0):  # reported at the record
        return False
    if stated == decoded.upright:
        return True
    actual = f"{decoded.upright[0]} x {decoded.upright[1]}"
    if stated == decoded.stored:
        message = f"the record has the size as stored, {stated[0]} x {stated[1]}; the EXIF rotation makes it {actual}"
        hint = (
            "check that the annotations lie on the objects; best apply the rotation to the file and remove the EXIF tag"
        )
        place.warn(IssueCode.IMAGE_SIZE_MISMATCH, message, hint)
        return True
    message = f"the image is {actual}, but its record says {stated[0]} x {stated[1]}"
    place.error(IssueCode.IMAGE_SIZE_MISMATCH, message, "annotations must belong to this very size of the image")
    return False
