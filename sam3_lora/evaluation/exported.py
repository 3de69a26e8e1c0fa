"""What `coco_metrics.evaluate` exported of one model, read again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3_lora.evaluation.matching import match

if TYPE_CHECKING:
    from collections.abc import Collection

    from pycocotools.cocoeval import COCOeval

FILES = ("truth", "predictions", "evaluation")
MIN_SCORE = 0.5  # detections that count as found, as in cgF1


@dataclass
class EvaluatedModel:
    """One model's files, and what pycocotools makes of them."""

    truth: dict[str, Any]
    predictions: list[dict[str, Any]]
    evaluation: dict[str, Any]
    kind: str  # that overlaps are measured on: "segm" or "bbox"

    def metric(self, name: str) -> float | None:
        return number(self.evaluation["metrics"].get(name))

    def only(self, images: Collection[int]) -> EvaluatedModel:
        """The same on these images alone, by their ids. Its metrics stay those of all."""
        own = [entry for entry in self.truth["annotations"] if entry["image_id"] in images]
        truth = {**self.truth, "images": [i for i in self.truth["images"] if i["id"] in images], "annotations": own}
        return replace(self, truth=truth, predictions=[p for p in self.predictions if p["image_id"] in images])

    @cached_property
    def matches(self) -> COCOeval:
        return match(self.truth, self.predictions, self.kind)

    @cached_property
    def mistakes(self) -> tuple[set[int], set[int]]:
        """Ids of objects without a confident partner, and positions (from 1) of confident detections without one.

        Crowds count as neither.
        """
        matches = self.matches
        if self.kind == "segm" and any("segmentation" not in a for a in self.truth["annotations"]):
            matches = match(self.truth, self.predictions, "bbox")  # objects without a mask can be found, too
        missed: set[int] = set()
        false_alarms: set[int] = set()
        for pair in filter(None, matches.evalImgs):
            confident = np.asarray(pair["dtScores"]) >= MIN_SCORE
            detections = np.asarray(pair["dtIds"], dtype=int)
            wrong = confident & (pair["dtMatches"][0] == 0)
            lost = ~np.isin(pair["gtMatches"][0], detections[confident]) & ~np.asarray(pair["gtIgnore"], dtype=bool)
            false_alarms.update(detections[wrong].tolist())
            missed.update(np.asarray(pair["gtIds"], dtype=int)[lost].tolist())
        return missed, false_alarms


def load(folder: Path) -> EvaluatedModel:
    """Read a model's three files.

    Raises:
        OSError, ValueError, KeyError: if one is missing or not what was exported.
    """
    truth, predictions, evaluation = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in FILES)
    kind = "bbox" if number(evaluation["metrics"].get("segm_mAP")) is None else "segm"
    return EvaluatedModel(truth, predictions, evaluation, kind)


def number(value: object) -> float | None:
    """The value, if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
