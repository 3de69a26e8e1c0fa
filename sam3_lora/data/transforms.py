"""Geometry and colour of training and validation images; boxes and masks move with the pixels.

Shapes: H, W original pixels; R = side of the square network input; N objects.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pycocotools import mask as rle_codec

from sam3_lora.data.datapoint import normalise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from sam3_lora.coco.schema import Annotation
    from sam3_lora.config import DatasetOptions

SIZES = 17  # steps between the smallest and the full size, as official training (480..1008 by 32)


@dataclass(frozen=True)
class Placement:
    """Where an image lies in its square input: resized to `side` x `side`, mirrored or not, at (left, top)."""

    side: int
    left: int
    top: int
    mirrored: bool
    resolution: int


def draw_placement(rng: np.random.Generator, options: DatasetOptions, resolution: int) -> Placement:
    """Random square size, position and mirroring of a training image."""
    fraction = float(rng.choice(np.linspace(options.min_scale, 1.0, SIZES)))
    side = max(1, round(fraction * resolution))
    left, top = (int(v) for v in rng.integers(0, resolution - side + 1, 2))
    return Placement(side, left, top, bool(rng.random() < options.horizontal_flip), resolution)


def whole(resolution: int) -> Placement:
    """The image squashed to the full square: validation, and what a lost object falls back on."""
    return Placement(resolution, 0, 0, False, resolution)


def draw_colour(rng: np.random.Generator, strength: float) -> tuple[float, ...]:
    """Random factors of brightness, contrast and saturation in 1 +- strength; none where it is 0."""
    return tuple(1 + float(rng.uniform(-strength, strength)) for _ in range(3)) if strength > 0 else ()


def recolour(pixels: NDArray[np.uint8], factors: tuple[float, ...]) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation, one after the other."""
    if not factors:
        return pixels
    image = Image.fromarray(pixels)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(enhancers, factors, strict=True):
        image = enhance(image).enhance(factor)
    return np.asarray(image)


def view_name(file: Path, placement: Placement, *, colour: tuple[float, ...], transparent_color: Sequence[int]) -> str:
    """A name that two network inputs share only if they are equal: by the file's bytes and all that is done to them."""
    content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    return f"{content} {placement} {colour} {tuple(transparent_color)}"


def place_image(pixels_HW3: NDArray[np.uint8], placement: Placement) -> Tensor:
    """Normalised (3, R, R) float tensor."""
    side = placement.side
    image = Image.fromarray(pixels_HW3).resize((side, side), Image.Resampling.BILINEAR)
    if placement.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = np.zeros((placement.resolution, placement.resolution, 3), np.uint8)
    canvas[placement.top : placement.top + side, placement.left : placement.left + side] = np.asarray(image)
    return normalise(torch.from_numpy(canvas))


def place_boxes(annotations: Sequence[Annotation], size_HW: tuple[int, int], placement: Placement) -> Tensor:
    """Boxes (N, 4) as cxcywh in [0, 1] of the network input.

    Boxes are clipped to the image as corners (clipping x, y, w, h one by one would move the far edge).
    """
    height, width = size_HW
    xywh = torch.tensor([a.bbox for a in annotations], dtype=torch.float64).view(-1, 4)
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    corners[:, 0::2] = corners[:, 0::2].clamp(0, width) * (placement.side / width)
    corners[:, 1::2] = corners[:, 1::2].clamp(0, height) * (placement.side / height)
    if placement.mirrored:
        corners[:, [0, 2]] = placement.side - corners[:, [2, 0]]
    corners += torch.tensor([placement.left, placement.top] * 2, dtype=torch.float64)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return (torch.cat([centres, sizes], 1) / placement.resolution).float()


def place_masks(annotations: Sequence[Annotation], size_HW: tuple[int, int], placement: Placement) -> Tensor:
    """Masks (N, R, R) bool; an object without a segmentation has no True."""
    side = placement.side
    masks = np.zeros((len(annotations), placement.resolution, placement.resolution), bool)
    for index, annotation in enumerate(annotations):
        mask = _mask_at(annotation, size_HW, side)
        if mask is None:
            continue
        if placement.mirrored:
            mask = mask[:, ::-1]
        masks[index, placement.top : placement.top + side, placement.left : placement.left + side] = mask
    return torch.from_numpy(masks)


def _mask_at(annotation: Annotation, size_HW: tuple[int, int], side: int) -> NDArray[np.bool_] | None:
    """The annotation's mask resized to side x side."""
    height, width = size_HW
    segmentation = annotation.segmentation
    if not segmentation:
        return None
    if isinstance(segmentation, list):  # polygons scale exactly, without a detour over the original pixels
        factors = np.array([side / width, side / height])
        scaled = [(np.asarray(p, np.float64).reshape(-1, 2) * factors).ravel().tolist() for p in segmentation]
        return rle_codec.decode(rle_codec.merge(rle_codec.frPyObjects(scaled, side, side))).astype(bool)  # type: ignore[no-any-return]
    mask = rle_codec.decode(compressed(segmentation, size_HW))
    return np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST), dtype=bool)


def compressed(segmentation: list[list[float]] | dict[str, object], size_HW: tuple[int, int]) -> dict[str, object]:
    """Any COCO segmentation as one compressed RLE at the original size."""
    height, width = size_HW
    if isinstance(segmentation, list):
        return rle_codec.merge(rle_codec.frPyObjects(segmentation, height, width))  # type: ignore[no-any-return]
    if isinstance(segmentation["counts"], list):
        return rle_codec.frPyObjects(segmentation, height, width)  # type: ignore[no-any-return]
    return segmentation
