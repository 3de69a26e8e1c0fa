import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sam3.eval.cgf1_eval import CGF1Evaluator

from sam3_lora.evaluation.cgf1 import NO_NEGATIVES, NO_POSITIVES, presence_scores

BOX = [10.0, 10.0, 20.0, 20.0]


def truth(annotations: list[tuple[int, int, list[float]]], images: int = 2, concepts: int = 2) -> dict[str, Any]:
    return {
        "images": [{"id": n, "height": 60, "width": 80} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"c{n}"} for n in range(1, concepts + 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": concept, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, concept, box) in enumerate(annotations, start=1)
        ],
    }


def hit(image: int, concept: int, score: float = 0.9, box: list[float] = BOX) -> dict[str, Any]:
    return {"image_id": image, "category_id": concept, "bbox": box, "score": score}


def test_one_false_alarm_of_two():
    """Present: (1, 1), (2, 1). Absent: (1, 2), (2, 2); the latter is answered with an object."""
    found, notes = presence_scores(
        truth([(1, 1, BOX), (2, 1, BOX)]), [hit(1, 1), hit(2, 1), hit(2, 2), hit(1, 2, 0.49)], kind="bbox"
    )
    assert notes == ()
    assert found["IL_FPR"] == pytest.approx(0.5, abs=1e-4)
    mcc = (2 * 1 - 1 * 0) / (3 * 2 * 2 * 1) ** 0.5  # of TP 2, TN 1, FP 1, FN 0
    assert found["IL_MCC"] == pytest.approx(mcc, abs=1e-4)
    assert found["positive_micro_F1"] == pytest.approx(1.0, abs=1e-3)
    assert found["cgF1"] == pytest.approx(mcc, abs=1e-3)


def test_equals_the_official_evaluator(tmp_path: Path):
    rng = np.random.default_rng(0)
    images, concepts = 8, 3
    annotations, results = [], []
    for image in range(1, images + 1):
        for concept in range(1, concepts + 1):
            boxes = rng.uniform(5, 40, (rng.integers(0, 3), 4)).round(1).tolist()
            annotations += [(image, concept, box) for box in boxes]
            for box in boxes + rng.uniform(5, 40, (rng.integers(0, 2), 4)).tolist():
                moved = (np.array(box) + rng.normal(0, 1.5, 4)).clip(1).tolist()
                results.append(hit(image, concept, float(rng.uniform(0.2, 1)), moved))
    body = truth(annotations, images, concepts)
    pair = {(i, c): (i - 1) * concepts + c for i in range(1, images + 1) for c in range(1, concepts + 1)}
    official = {
        "images": [{"id": n, "height": 60, "width": 80, "is_instance_exhaustive": True} for n in pair.values()],
        "categories": [{"id": 1, "name": "asked"}],
        "annotations": [
            {**a, "image_id": pair[a["image_id"], a["category_id"]], "category_id": 1} for a in body["annotations"]
        ],
    }
    predicted = [{**r, "image_id": pair[r["image_id"], r["category_id"]], "category_id": 1} for r in results]
    (tmp_path / "truth.json").write_text(json.dumps(official))
    (tmp_path / "predicted.json").write_text(json.dumps(predicted))
    expected = CGF1Evaluator(str(tmp_path / "truth.json"), iou_type="bbox").evaluate(str(tmp_path / "predicted.json"))
    found, _ = presence_scores(body, results, kind="bbox")
    assert found == {name: pytest.approx(expected[f"cgF1_eval_bbox_{name}"]) for name in found}
    assert 0 < found["cgF1"] < 1


def test_without_negatives_only_what_is_defined_is_reported():
    found, notes = presence_scores(truth([(1, 1, BOX)], images=1, concepts=1), [hit(1, 1)], kind="bbox")
    assert notes == (NO_NEGATIVES,)
    assert (found["cgF1"], found["IL_MCC"], found["IL_FPR"]) == (None, None, None)
    assert found["positive_micro_F1"] == pytest.approx(1.0, abs=1e-3)


def test_without_positives_false_alarms_still_count():
    found, notes = presence_scores(truth([]), [hit(1, 2)], kind="bbox")
    assert notes == (NO_POSITIVES,)
    assert found["IL_FPR"] == pytest.approx(0.25, abs=1e-4)
    assert found["cgF1"] is None


def test_crowd_alone_is_neither_present_nor_absent():
    body = truth([(1, 1, BOX), (2, 1, BOX), (2, 2, BOX)])
    body["annotations"][2]["iscrowd"] = 1
    found, _ = presence_scores(body, [hit(1, 1), hit(2, 1), hit(2, 2)], kind="bbox")
    assert found["IL_FPR"] == pytest.approx(0.0, abs=1e-4)  # of (1, 2) alone


def test_objects_without_a_mask_are_not_asked_of_masks():
    found, notes = presence_scores(truth([(1, 1, BOX)], images=1, concepts=1), [], kind="segm")
    assert notes == (NO_POSITIVES,)
    assert set(found.values()) == {None}
