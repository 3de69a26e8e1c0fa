"""Draw a few images of a dataset, small, with their annotations: what people look at before they train.

Run as a module, it draws under resource limits for `isolation`: images are of strangers.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from sam3_lora.coco.images import FORMATS
from sam3_lora.coco.layout import find_layout
from sam3_lora.coco.limits import limit_process
from sam3_lora.coco.masks import decode_counts
from sam3_lora.coco.members import FolderMembers
from sam3_lora.coco.overlay import draw_instances
from sam3_lora.coco.pictures import Picture, append
from sam3_lora.coco.pixels import is_to_turn, to_rgb
from sam3_lora.coco.report import DatasetIssueError, Place
from sam3_lora.coco.schema import Annotation, CocoDataset, ImageRecord, ValidationLimits, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

IMAGES_PER_SPLIT = 12
WIDTH, HEIGHT = 480, 640  # most pixels of a picture
MAX_DRAWN = 200  # annotations of an image
LABELLED = 12  # with more, labels would hide the image
LABEL_LENGTH = 20
FRAME = 3  # pixels that a box without a mask is drawn with
QUALITY = 80
WHITE = (255, 255, 255)


def draw(
    root: Path, target: Path, limits: ValidationLimits | None = None, on_picture: Callable[[int], None] | None = None
) -> None:
    """Draw images spread evenly over each split into the empty folder `target`; `on_picture` is told how many.

    What cannot be drawn is left out. Decodes images in this process: for files of strangers use
    `isolation.draw_isolated`.
    """
    limits = limits or ValidationLimits()
    members = FolderMembers(root)
    count = 0
    try:
        splits = find_layout(root).splits()
    except DatasetIssueError:
        return
    for name, split in splits.items():
        dataset = read(split.annotations, Place(lambda _: None), limits)
        for record in _spread(dataset):
            path = members.find(split.images, record.file_name)
            annotations = dataset.annotations_of(record.id)
            image = None if path is None else _drawn(path, record, annotations, dataset, limits.image_pixels)
            if image is None:
                continue
            image.save(target / f"{count}.webp", quality=QUALITY)
            size = {"width": record.width, "height": record.height}
            append(target, Picture(split=name, file_name=record.file_name, instances=len(annotations), **size))
            count += 1
            if on_picture is not None:
                on_picture(count)


def _spread(dataset: CocoDataset) -> Iterator[ImageRecord]:
    """Images at even distances, annotated ones first."""
    usable = [record for record in dataset.images.values() if record.width and record.file_name]
    chosen = [record for record in usable if dataset.annotations_of(record.id)] or usable
    count = min(IMAGES_PER_SPLIT, len(chosen))
    for position in range(count):
        yield chosen[position * len(chosen) // count]


def _drawn(
    path: Path, record: ImageRecord, annotations: Sequence[Annotation], dataset: CocoDataset, max_pixels: int
) -> Image.Image | None:
    try:
        pixels_HW3 = _small_pixels(path, record, max_pixels)
    except Exception:  # noqa: BLE001 - decoders raise anything on hostile files, and the report has named it
        return None
    height, width = pixels_HW3.shape[:2]
    shown = annotations[:MAX_DRAWN]
    masks = [_small_mask(annotation, record, width, height) for annotation in shown]
    order = {category_id: position for position, category_id in enumerate(dataset.categories)}
    names = [dataset.categories[annotation.category_id].name for annotation in shown]
    labels = [_label(name) if len(shown) <= LABELLED else "" for name in names]
    return draw_instances(pixels_HW3, masks, labels, [order[each.category_id] for each in shown], width=width)


def _small_pixels(path: Path, record: ImageRecord, max_pixels: int) -> NDArray[np.uint8]:
    with Image.open(path, formats=FORMATS) as image:
        if image.size[0] * image.size[1] > max_pixels:
            raise ValueError("too large")
        turn = is_to_turn(image, (record.width, record.height))
        image.draft("RGB", (2 * HEIGHT, 2 * HEIGHT))  # JPEG: far fewer pixels are made
        upright = to_rgb(ImageOps.exif_transpose(image) if turn else image, WHITE)
    if (upright.width > upright.height) != (record.width > record.height) and record.width != record.height:
        raise ValueError("not of the recorded size")
    scale = min(WIDTH / record.width, HEIGHT / record.height)
    size = (max(1, round(record.width * scale)), max(1, round(record.height * scale)))
    return np.asarray(upright.resize(size, Image.Resampling.LANCZOS))


def _small_mask(annotation: Annotation, record: ImageRecord, width: int, height: int) -> NDArray[np.bool_]:
    """The annotation's mask, or the frame of its box, at the picture's size."""
    x_scale, y_scale = width / record.width, height / record.height
    if isinstance(annotation.segmentation, dict):
        counts = annotation.segmentation["counts"]
        runs = decode_counts(counts) if isinstance(counts, str) else counts
        values = np.arange(len(runs), dtype=np.uint8) % 2 * np.uint8(255)
        mask_HW = np.repeat(values, runs).reshape(record.width, record.height).T
        return np.asarray(Image.fromarray(mask_HW).resize((width, height), Image.Resampling.BILINEAR)) > 127
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    if annotation.segmentation is None:
        x, y, box_width, box_height = annotation.bbox
        corners = (x * x_scale, y * y_scale, (x + box_width) * x_scale, (y + box_height) * y_scale)
        draw.rectangle(corners, outline=255, width=FRAME)
    else:
        for polygon in annotation.segmentation:
            points = zip(polygon[0::2], polygon[1::2], strict=True)
            draw.polygon([(x * x_scale, y * y_scale) for x, y in points], fill=255)
    return np.asarray(canvas) > 127


def _label(name: str) -> str:
    """The name as far as the picture's font has its letters."""
    text = "".join(letter if ord(letter) < 0x180 and letter.isprintable() else "?" for letter in name)
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}..."


def main() -> None:
    """Draw under limits."""
    parser = argparse.ArgumentParser(description="Draw images of a dataset folder under resource limits.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="existing folder for the pictures")
    parser.add_argument("--memory-bytes", type=int, required=True, help="address space")
    parser.add_argument("--cpu-s", type=int, required=True, help="processor time in seconds")
    parser.add_argument("--limits", type=json.loads, required=True, help="ValidationLimits as JSON")
    args = parser.parse_args()
    limit_process(memory_bytes=args.memory_bytes, cpu_s=args.cpu_s)
    warnings.simplefilter("ignore")
    draw(args.root, args.output, ValidationLimits(**args.limits), _print_progress)


def _print_progress(count: int) -> None:
    """A closed pipe ends the process: nobody waits for the pictures."""
    sys.stdout.write(f"{count} {count}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
