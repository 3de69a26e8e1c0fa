"""Scores of a model on a COCO dataset, by pycocotools and sam3, from the annotations as they are on disk.

Every image is asked for every concept, so that false alarms on absent concepts cost precision.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle_codec
from pycocotools.cocoeval import COCOeval

from sam3_lora.data.images import read_rgb
from sam3_lora.data.transforms import compressed, view_name, whole
from sam3_lora.distributed import World
from sam3_lora.evaluation.cgf1 import THRESHOLD, presence_scores
from sam3_lora.evaluation.matching import coco_index, detections_index
from sam3_lora.evaluation.probe import FalseAlarms, count_false_alarms, not_in_dataset, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sam3_lora.coco.schema import CocoDataset, ImageRecord
    from sam3_lora.config import DatasetOptions, EvaluationConfig
    from sam3_lora.data.concepts import Concept
    from sam3_lora.evaluation.predict import Detections, Predictor

KINDS = ("segm", "bbox")
NO_MASKS = "Mask metrics are not defined: masks were not trained, or the data has none."
NOTHING_ABSENT = "absent_FPR is not defined: no absent prompts were asked about."
SUMMARY = {"mAP": 0, "mAP50": 1, "mAP75": 2}  # positions in COCOeval.stats


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one dataset."""

    metrics: dict[str, float | None]  # segm_mAP, bbox_..., cgF1, IL_..., absent_FPR; None: not defined on this data
    per_category: list[dict[str, Any]]  # ids (of the dataset), name, segm_mAP, bbox_mAP
    images: int
    notes: tuple[str, ...] = ()  # why a metric is None
    absent: tuple[FalseAlarms, ...] = ()  # the forgetting probe, by prompt

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics,
            "per_category": self.per_category,
            "images": self.images,
            "notes": list(self.notes),
            "absent_prompts": [row.to_dict() for row in self.absent],
        }


def evaluate(
    predictor: Predictor,
    dataset: CocoDataset,
    folder: Path,
    concepts: Sequence[Concept],
    options: DatasetOptions,
    settings: EvaluationConfig,
    *,
    export: Path | None = None,
    on_image: Callable[[int, int], object] = lambda done, total: None,
    world: World | None = None,
) -> Evaluation:
    """Predict every concept on every image and score the detections.

    Args:
        world: processes that predict a share of the images each; all of them get the same scores.
        export: folder to write `truth.json` and `predictions.json` into, from which plain pycocotools computes the
            same figures, and `evaluation.json` with them.
        on_image: called after each image with (done, total); may raise to stop.
    """
    world = world or World()
    images = list(dataset.images.values())[: settings.max_images]
    texts = [concept.texts[0] for concept in concepts]
    absent = not_in_dataset(settings.absent_prompts, concepts)
    own: list[tuple[int, list[dict[str, Any]], list[bool] | None]] = []
    for index, done in world.share(len(images)):
        if index is not None:
            image, number = images[index], index + 1
            file, background = folder / image.file_name, options.transparent_color
            view = partial(_view, predictor, file, background)
            encoded = predictor.recall(view, (image.height, image.width))
            if encoded is None:
                pixels = read_rgb(file, transparent_color=background, size=(image.width, image.height))
                encoded = predictor.encode(pixels, view)
            found = zip(concepts, predictor.ask(encoded, texts), strict=True)
            results = [entry for c, detected in found for entry in to_results(detected, number, c.number)]
            fired = None
            if number <= settings.absent_images:
                fired = [len(d.scores_K) > 0 for d in predictor.ask(encoded, absent, min_score=THRESHOLD)]
            own.append((number, results, fired))
        on_image(done, len(images))
    answers = sorted((row for part in world.gather(own) for row in part), key=lambda row: row[0])
    results = [entry for _, entries, _ in answers for entry in entries]
    truth = ground_truth(dataset, images, concepts)
    alarms = count_false_alarms(absent, [fired for _, _, fired in answers if fired is not None])
    evaluation = score(truth, results, concepts, masks=predictor.masks)
    notes = evaluation.notes if alarms else (*evaluation.notes, NOTHING_ABSENT)
    metrics = {**evaluation.metrics, "absent_FPR": rate(alarms)}
    evaluation = replace(evaluation, metrics=metrics, notes=notes, absent=tuple(alarms))
    if export is not None and world.leads:
        _export(export, truth, results, evaluation)
    return evaluation


def _view(predictor: Predictor, file: Path, background: Sequence[int]) -> str:
    return view_name(file, whole(predictor.resolution), colour=(), transparent_color=background)


def _export(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]], evaluation: Evaluation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in (("truth", truth), ("predictions", results), ("evaluation", evaluation.to_dict())):
        (folder / f"{name}.json").write_text(json.dumps(body, default=bytes.decode), encoding="utf-8")


def ground_truth(dataset: CocoDataset, images: Sequence[ImageRecord], concepts: Sequence[Concept]) -> dict[str, Any]:
    """COCO JSON of these images with one category per concept; crowds stay, to be ignored by the scorer.

    Images and annotations are numbered from 1: ids may be texts, and pycocotools takes annotation 0 for "unmatched".
    """
    concept_of = {category: concept.number for concept in concepts for category in concept.category_ids}
    numbered = {image.id: (number, (image.height, image.width)) for number, image in enumerate(images, start=1)}
    known = [a for a in dataset.annotations if a.image_id in numbered and a.category_id in concept_of]
    annotations = []
    for annotation_number, annotation in enumerate(known, start=1):
        image_number, size_HW = numbered[annotation.image_id]
        entry = {
            "id": annotation_number,
            "image_id": image_number,
            "category_id": concept_of[annotation.category_id],
            "bbox": list(annotation.bbox),
            "area": annotation.bbox[2] * annotation.bbox[3],
            "iscrowd": int(annotation.is_crowd),
        }
        if annotation.segmentation:
            entry["segmentation"] = compressed(annotation.segmentation, size_HW)
            entry["area"] = float(rle_codec.area(entry["segmentation"]))
        annotations.append(entry)
    return {
        "images": [
            {"id": number, "height": i.height, "width": i.width, "file_name": i.file_name}
            for number, i in enumerate(images, start=1)
        ],
        "categories": [{"id": concept.number, "name": concept.name} for concept in concepts],
        "annotations": annotations,
    }


def to_results(found: Detections, image_id: int, category_id: int) -> list[dict[str, Any]]:
    """Detections as entries of a COCO results file."""
    entries = []
    for index, value in enumerate(found.scores_K.tolist()):
        left, top, right, bottom = found.boxes_xyxy_K4[index].tolist()
        entry = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [left, top, right - left, bottom - top],
            "score": value,
        }
        if found.masks_KHW is not None:
            entry["segmentation"] = rle_codec.encode(np.asfortranarray(found.masks_KHW[index].numpy(), dtype=np.uint8))
        entries.append(entry)
    return entries


def score(
    truth: dict[str, Any], results: list[dict[str, Any]], concepts: Sequence[Concept], *, masks: bool
) -> Evaluation:
    """COCO metrics of a results list; a kind that the data or the model lacks is None throughout."""
    metrics: dict[str, float | None] = {}
    per_category: list[dict[str, Any]] = [{"ids": list(c.category_ids), "name": c.name} for c in concepts]
    for kind in KINDS:
        scorer = _run(truth, results, kind) if kind == "bbox" or masks else None
        for name, position in SUMMARY.items():
            metrics[f"{kind}_{name}"] = None if scorer is None else _defined(scorer.stats[position])
        for index, row in enumerate(per_category):
            # precision has shape (thresholds, recalls, categories, areas, max detections); the last two: all, 100
            row[f"{kind}_mAP"] = None if scorer is None else _mean(scorer.eval["precision"][:, :, index, 0, -1])
    presence, notes = presence_scores(truth, results, kind="segm" if masks else "bbox")
    if metrics["segm_mAP"] is None:
        notes = (*notes, NO_MASKS)
    return Evaluation({**metrics, **presence}, per_category, len(truth["images"]), notes)


def _run(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval | None:
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = coco_index(truth, truth["annotations"], kind)
        if not annotated.anns:
            return None
        scorer = COCOeval(annotated, detections_index(truth, results, kind), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)  # pycocotools says -1 where nothing was annotated


def _mean(precision: np.ndarray[Any, Any]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
