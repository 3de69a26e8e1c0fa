"""`demo/overlay.png`: truth, base model and tuned model side by side on validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as rle_codec

from sam3_lora.coco import schema
from sam3_lora.coco.overlay import draw_instances, side_by_side
from sam3_lora.data.concepts import find_concepts
from sam3_lora.data.images import read_rgb
from sam3_lora.data.transforms import compressed
from sam3_lora.evaluation.predict import open_predictor
from sam3_lora.lora.layers import adapters_off

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from sam3_lora.coco.layout import Split
    from sam3_lora.data.concepts import Concept
    from sam3_lora.evaluation.predict import Detections

ROWS = 3
MIN_SCORE = 0.5
PANEL_WIDTH = 360


def draw(adapter: Path, split: Split, output: Path) -> int:
    """Predict on the images with most objects and write the picture; return how many objects the tuned one found."""
    dataset = schema.load(split.annotations)
    concepts = find_concepts(dataset, {})
    texts = [concept.texts[0] for concept in concepts]
    predictor, _ = open_predictor(adapter)
    chosen = sorted(dataset.images.values(), key=lambda i: (-len(dataset.annotations_of(i.id)), i.file_name))[:ROWS]
    rows, found = [], 0
    for image in chosen:
        pixels = read_rgb(split.images / image.file_name, size=(image.width, image.height))
        tuned = predictor.predict(pixels, texts, min_score=MIN_SCORE)
        with adapters_off(predictor.model):
            base = predictor.predict(pixels, texts, min_score=MIN_SCORE)
        truth = _truth(pixels, dataset, image, concepts)
        rows.append([truth, _predicted(pixels, base, concepts), _predicted(pixels, tuned, concepts)])
        found += sum(len(d.scores_K) for d in tuned)
    output.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(rows, ["truth", "base model", "tuned model"]).save(output)
    return found


def _truth(
    pixels: np.ndarray, dataset: schema.CocoDataset, image: schema.ImageRecord, concepts: list[Concept]
) -> Image.Image:
    masks, labels, colours = [], [], []
    for annotation in dataset.annotations_of(image.id):
        if annotation.segmentation:
            masks.append(
                rle_codec.decode(compressed(annotation.segmentation, (image.height, image.width))).astype(bool)
            )
            number = next(n for n, c in enumerate(concepts) if annotation.category_id in c.category_ids)
            labels.append(concepts[number].name)
            colours.append(number)
    return draw_instances(pixels, masks, labels, colours, width=PANEL_WIDTH)


def _predicted(pixels: np.ndarray, found: list[Detections], concepts: list[Concept]) -> Image.Image:
    masks, labels, colours = [], [], []
    for number, (concept, detections) in enumerate(zip(concepts, found, strict=True)):
        assert detections.masks_KHW is not None  # the predictor was opened with masks
        for mask, score in zip(detections.masks_KHW, detections.scores_K.tolist(), strict=True):
            masks.append(mask.numpy())
            labels.append(f"{concept.name} {score:.2f}")
            colours.append(number)
    return draw_instances(pixels, masks, labels, colours, width=PANEL_WIDTH)
