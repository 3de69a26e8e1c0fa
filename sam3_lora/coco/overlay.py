"""Draw masks and boxes on images, and panels side by side: what people look at to judge a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Distinct on photographs and for the colour-blind (Okabe and Ito, 2008).
PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
OPACITY = 0.5
TITLE_HEIGHT, GAP = 34, 8


def draw_instances(
    pixels_HW3: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]],
    labels: Sequence[str],
    colours: Sequence[int],
    *,
    width: int = 480,
) -> Image.Image:
    """The image at `width` pixels with each mask tinted, outlined and labelled.

    Args:
        masks: (H, W) bool each, at the image's size.
        colours: index into the palette for each mask (by category, say).
    """
    scale = width / pixels_HW3.shape[1]
    size = (width, max(1, round(pixels_HW3.shape[0] * scale)))
    canvas = np.array(Image.fromarray(pixels_HW3).resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    anchors: list[tuple[int, int] | None] = []
    for mask, colour in zip(masks, colours, strict=True):
        resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(resized) > 127
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not len(rows):
            anchors.append(None)
            continue
        anchors.append((int(columns[0]), int(rows[0])))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        part, shown = inside[window], canvas[window]
        tint = np.asarray(PALETTE[colour % len(PALETTE)], dtype=np.float32)
        shown[part] = shown[part] * (1 - OPACITY) + tint * OPACITY
        shown[part & ~_eroded(part)] = tint
    image = Image.fromarray(canvas.astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for anchor, label, colour in zip(anchors, labels, colours, strict=True):
        if anchor is not None and label:
            _label(draw, font, anchor, label, PALETTE[colour % len(PALETTE)], image.size)
    return image


def side_by_side(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Rows of equally wide panels under column titles, on white."""
    panel_width = rows[0][0].width
    heights = [max(panel.height for panel in row) for row in rows]
    total = (len(titles) * (panel_width + GAP) + GAP, TITLE_HEIGHT + sum(h + GAP for h in heights))
    sheet = Image.new("RGB", total, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (panel_width + GAP), 7), title, fill="black", font=font)
    top = TITLE_HEIGHT
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (GAP + column * (panel_width + GAP), top))
        top += height + GAP
    return sheet


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels within two of an edge, the array's own included."""
    inner, padded = mask.copy(), np.pad(mask, 2)
    height, width = mask.shape
    for shift in (0, 1, 3, 4):
        inner &= padded[shift : shift + height, 2 : 2 + width] & padded[2 : 2 + height, shift : shift + width]
    return inner


def _label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    anchor: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    limits: tuple[int, int],
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = int(right - left) + 8, int(bottom - top) + 6
    x = min(max(0, anchor[0]), limits[0] - width)
    y = min(max(0, anchor[1] - height), limits[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = colour[0] * 0.299 + colour[1] * 0.587 + colour[2] * 0.114 > 140
    draw.text((x + 4 - left, y + 3 - top), text, fill="black" if bright else "white", font=font)
