"""Uploaded images: looked at without a model, before anything of them is stored."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sam3_lora.coco.images import FORMATS_HINT, TooLargeError, decode
from service.shared.errors import ImageTooLargeError, ImageUnreadableError, UnsupportedMediaTypeError


def checked_image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of the upright image, all of which can be decoded.

    Raises:
        UnsupportedMediaTypeError, ImageTooLargeError, ImageUnreadableError: each names what is wrong.
    """
    try:
        return decode(path.read_bytes(), max_pixels).upright
    except (TooLargeError, Image.DecompressionBombError) as error:
        raise _too_large(error) from None
    except UnidentifiedImageError:
        raise UnsupportedMediaTypeError(f"The file is not an image of a supported format; {FORMATS_HINT}.") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile files
        raise ImageUnreadableError(f"The image cannot be decoded: {error or type(error).__name__}.") from None


def _too_large(error: Exception) -> ImageTooLargeError:
    return ImageTooLargeError(f"{error}: scale the image down.")
