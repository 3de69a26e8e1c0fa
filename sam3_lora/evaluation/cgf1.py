"""Does the model know what is *not* there? cgF1, IL_MCC and IL_FPR, by sam3's own scorer.

Each (image, concept) is one yes-or-no question, answered "yes" by any detection of at least `THRESHOLD`
(arXiv 2511.16719, section 5). IL_MCC and IL_FPR score those answers; cgF1 = positive micro F1 x IL_MCC.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from sam3.eval.cgf1_eval import CGF1Eval

THRESHOLD = 0.5
NAMES = ("cgF1", "positive_micro_F1", "IL_MCC", "IL_FPR")
NO_NEGATIVES = "cgF1, IL_MCC and IL_FPR are not defined: every image has objects of every concept"
NO_POSITIVES = "cgF1 and IL_MCC are not defined: no concept has an object of the measured kind on these images"


def presence_scores(
    truth: dict[str, Any], results: list[dict[str, Any]], *, kind: str
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """Scores in [0, 1] (IL_MCC: [-1, 1]) by name, None where not defined, and why.

    Args:
        truth: COCO JSON of `coco_metrics.ground_truth`.
        results: COCO results of the same numbering.
        kind: "segm" or "bbox"; what overlaps are measured on. For "segm", questions about objects without a
            mask are left out, and for both kinds those about crowds alone.
    """
    sizes = {image["id"]: image for image in truth["images"]}
    objects: dict[tuple[int, int], list[dict[str, Any]]] = {
        (image, category["id"]): [] for image in sizes for category in truth["categories"]
    }
    for annotation in truth["annotations"]:
        objects[annotation["image_id"], annotation["category_id"]].append(annotation)
    asked = [
        pair
        for pair, found in objects.items()
        if not found
        or (not all(a["iscrowd"] for a in found) and (kind == "bbox" or all("segmentation" in a for a in found)))
    ]
    positives = sum(bool(objects[pair]) for pair in asked)
    if not positives:
        notes: tuple[str, ...] = (NO_POSITIVES,)
    else:
        notes = (NO_NEGATIVES,) if positives == len(asked) else ()
    if not asked:
        return dict.fromkeys(NAMES), notes
    number = {pair: index for index, pair in enumerate(asked, start=1)}
    images = [{**sizes[pair[0]], "id": index} for pair, index in number.items()]
    wanted = [a for pair in asked for a in objects[pair]]
    detected = [r for r in results if r["score"] >= THRESHOLD and (r["image_id"], r["category_id"]) in number]
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="ignore", divide="ignore"):
        scorer = CGF1Eval(_coco(images, wanted, number), _coco(images, detected, number), kind, THRESHOLD)
        scorer.evaluate()
        scorer.accumulate()
    values: dict[str, float | None] = {name: float(np.mean(scorer.eval[name])) for name in NAMES}
    if not positives:
        values |= {"cgF1": None, "positive_micro_F1": None, "IL_MCC": None}
    if positives == len(asked):
        values |= {"cgF1": None, "IL_MCC": None, "IL_FPR": None}
    return values, notes


def _coco(images: list[dict[str, Any]], entries: list[dict[str, Any]], number: dict[tuple[int, int], int]) -> COCO:
    """A COCO index whose images are the questions, all of one category, as the scorer wants it."""
    coco = COCO()
    annotations = [
        {
            "iscrowd": 0,
            "area": entry["bbox"][2] * entry["bbox"][3],
            **entry,
            "id": index,
            "image_id": number[entry["image_id"], entry["category_id"]],
            "category_id": 1,
        }
        for index, entry in enumerate(entries, start=1)
    ]
    coco.dataset = {"images": images, "categories": [{"id": 1, "name": "asked"}], "annotations": annotations}
    coco.createIndex()
    return coco
