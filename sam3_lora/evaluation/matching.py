"""Detections against the truth, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

IOU = 0.5


def coco_index(truth: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], kind: str) -> COCO:
    """The truth's images and categories with these annotations, copied, since scorers write into them.

    Args:
        kind: "segm" (entries without a mask are left out) or "bbox".
    """
    coco = COCO()
    kept = [dict(entry) for entry in entries if kind == "bbox" or "segmentation" in entry]
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": kept}
    coco.createIndex()
    return coco


def detections_index(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> COCO:
    """Like `COCO.loadRes`, which cannot load an empty list and derives boxes from masks; ids are positions, from 1."""
    numbered = enumerate(results, start=1)
    entries = [{**entry, "id": number, "iscrowd": 0, "area": _area(entry)} for number, entry in numbered]
    return coco_index(truth, entries, kind)


def match(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], kind: str) -> COCOeval:
    """Detections matched to the truth by pycocotools at IoU 0.5, at most 100 for each image and category.

    Args:
        truth: COCO JSON.
        predictions: COCO results; in the outcome, their ids are their positions, from 1.
        kind: "segm" (entries without a mask are left out) or "bbox".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(
            coco_index(truth, truth["annotations"], kind), detections_index(truth, predictions, kind), kind
        )
        scorer.params.iouThrs = np.array([IOU])
        scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.params.maxDets = [100]
        scorer.evaluate()
        scorer.accumulate()
    return scorer


def precision_over_recall(scorer: COCOeval) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Recalls and precisions, (101,) each: the mean over categories that have objects; None where none has."""
    by_category = scorer.eval["precision"][0, :, :, 0, -1]
    known = by_category[:, (by_category > -1).any(0)]
    return (np.asarray(scorer.params.recThrs), known.mean(1)) if known.size else None


def _area(entry: Mapping[str, Any]) -> float:
    if "segmentation" in entry:
        return float(rle_codec.area(entry["segmentation"]))
    return float(entry["bbox"][2] * entry["bbox"][3])
