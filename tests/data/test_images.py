from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3_lora.coco.images import EXIF_ORIENTATION
from sam3_lora.data.images import read_rgb
from sam3_lora.errors import DatasetError


def test_exif_orientation_is_applied(tmp_path: Path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :5] = (255, 0, 0)  # a red left edge
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = 6  # to be shown turned 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = read_rgb(tmp_path / "a.png", size=(10, 20))
    assert turned.shape == (20, 10, 3)
    assert tuple(turned[0, 5]) == (255, 0, 0)  # left became top
    # annotations made on the unturned pixels keep fitting them
    assert read_rgb(tmp_path / "a.png", size=(20, 10)).shape == (10, 20, 3)


def test_sixteen_bit_is_scaled_not_clipped(tmp_path: Path):
    ramp = np.linspace(0, 4000, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = read_rgb(tmp_path / "a.png")
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_the_stated_colour(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255, 255))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    pixels = read_rgb(tmp_path / "a.png", transparent_color=(10, 20, 30))
    assert tuple(pixels[3, 3]) == (10, 20, 30)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str):
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    Image.new(mode, (6, 4)).save(tmp_path / name)
    assert read_rgb(tmp_path / name).shape == (4, 6, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"bad\.png"):
        read_rgb(tmp_path / "bad.png")


def test_missing_image_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"gone\.png"):
        read_rgb(tmp_path / "gone.png")


def test_other_size_than_annotated_is_refused(tmp_path: Path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="6 x 4"):
        read_rgb(tmp_path / "a.png", size=(7, 4))
