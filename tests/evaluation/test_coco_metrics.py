from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam3_lora.coco.schema import Annotation, Category, CocoDataset, ImageRecord
from sam3_lora.config import DatasetOptions, EvaluationConfig
from sam3_lora.data.concepts import find_concepts
from sam3_lora.evaluation.coco_metrics import Evaluation, evaluate
from sam3_lora.evaluation.predict import Detections

SIZE = (60, 100)
RECTANGLES = {"first": (10, 10, 30, 20), "second": (50, 20, 20, 30)}  # image id: x, y, w, h


def mask_of(x: int, y: int, w: int, h: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask


def polygon(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Two images with text ids, one object of category a each; b is annotated nowhere."""
    images = {}
    annotations = []
    for number, (key, rectangle) in enumerate(RECTANGLES.items()):
        Image.new("RGB", (SIZE[1], SIZE[0]), (100 * (number + 1), 0, 0)).save(tmp_path / f"{key}.png")
        images[key] = ImageRecord(key, f"{key}.png", SIZE[1], SIZE[0])
        annotations.append(Annotation(number, key, 7, tuple(map(float, rectangle)), polygon(*rectangle)))
    return CocoDataset({7: Category(7, "a"), 9: Category(9, "b")}, images, annotations)


class Oracle:
    """Answers from the truth: it knows the image by its colour."""

    masks = True

    def __init__(
        self, score_of_absent: float = 0.0, score: float = 0.9, shift: int = 0, fires_on: tuple[str, ...] = ()
    ) -> None:
        self.score_of_absent, self.score, self.shift, self.fires_on = score_of_absent, score, shift, fires_on

    def recall(self, view: Callable[[], str], size_HW: tuple[int, int]) -> None:
        return None

    def encode(self, pixels: np.ndarray, view: Callable[[], str]) -> np.ndarray:
        return pixels

    def ask(self, pixels: np.ndarray, texts: list[str], *, min_score: float = 0.0) -> list[Detections]:
        x, y, w, h = RECTANGLES["first" if pixels[0, 0, 0] == 100 else "second"]
        x += self.shift
        answers = []
        for text in texts:
            score = self.score if text == "a" or text in self.fires_on else self.score_of_absent
            kept = slice(0, int(score >= min_score))
            answers.append(
                Detections(
                    torch.tensor([score])[kept],
                    torch.tensor([[x, y, x + w, y + h]], dtype=torch.float)[kept],
                    mask_of(x, y, w, h)[None][kept],
                    presence=score,
                )
            )
        return answers


def evaluated(dataset: CocoDataset, folder: Path, predictor: object, **settings: object) -> Evaluation:
    concepts = find_concepts(dataset, {})
    return evaluate(predictor, dataset, folder, concepts, DatasetOptions(), EvaluationConfig(**settings))


def metrics(dataset: CocoDataset, folder: Path, predictor: object) -> dict[str, float | None]:
    return evaluated(dataset, folder, predictor).metrics


def test_perfect_predictions_score_one(dataset: CocoDataset, tmp_path: Path):
    found = metrics(dataset, tmp_path, Oracle())
    assert found.pop("IL_FPR") == pytest.approx(0.0, abs=1e-4)
    assert found.pop("absent_FPR") == 0.0
    assert found == {name: pytest.approx(1.0, abs=1e-3) for name in found}


def test_shifted_predictions_score_less(dataset: CocoDataset, tmp_path: Path):
    found = metrics(dataset, tmp_path, Oracle(shift=4))  # IoU 26/34 and 16/24
    assert found["segm_mAP50"] == pytest.approx(1.0)
    assert found["segm_mAP"] < 0.6


def test_per_category_and_undefined_categories(dataset: CocoDataset, tmp_path: Path):
    evaluation = evaluated(dataset, tmp_path, Oracle())
    assert evaluation.per_category == [
        {"ids": [7], "name": "a", "segm_mAP": pytest.approx(1.0), "bbox_mAP": pytest.approx(1.0)},
        {"ids": [9], "name": "b", "segm_mAP": None, "bbox_mAP": None},
    ]


def test_truth_is_matched_by_image_id_not_position(dataset: CocoDataset, tmp_path: Path):
    reordered = CocoDataset(dataset.categories, dict(reversed(dataset.images.items())), dataset.annotations)
    assert metrics(reordered, tmp_path, Oracle())["segm_mAP"] == pytest.approx(1.0)


def test_false_alarm_on_an_absent_concept_costs_precision(dataset: CocoDataset, tmp_path: Path):
    # category b is annotated on the second image only: firing on the first, too, with a higher score
    x, y, w, h = RECTANGLES["second"]
    extra = Annotation(5, "second", 9, (float(x), float(y), float(w), float(h)), polygon(x, y, w, h))
    both = CocoDataset(dataset.categories, dataset.images, [*dataset.annotations, extra])
    evaluation = evaluated(both, tmp_path, Oracle(score_of_absent=0.5))
    assert evaluation.per_category[0]["segm_mAP"] == pytest.approx(1.0)
    assert evaluation.per_category[1]["segm_mAP"] < 0.6


def test_crowd_regions_are_ignored(dataset: CocoDataset, tmp_path: Path):
    crowd = Annotation(8, "second", 7, (0.0, 0.0, 100.0, 60.0), polygon(0, 0, 100, 60), is_crowd=True)
    with_crowd = CocoDataset(dataset.categories, dataset.images, [*dataset.annotations, crowd])
    assert metrics(with_crowd, tmp_path, Oracle())["segm_mAP"] == pytest.approx(1.0)


def test_boxes_without_masks_give_no_segm_metric(dataset: CocoDataset, tmp_path: Path):
    boxes = [Annotation(a.id, a.image_id, a.category_id, a.bbox) for a in dataset.annotations]
    found = metrics(CocoDataset(dataset.categories, dataset.images, boxes), tmp_path, Oracle())
    assert found["segm_mAP"] is None
    assert found["bbox_mAP"] == pytest.approx(1.0)


def test_no_predictions_score_zero(dataset: CocoDataset, tmp_path: Path):
    class Silent(Oracle):
        def ask(self, pixels: np.ndarray, texts: list[str], *, min_score: float = 0.0) -> list[Detections]:
            nothing = Detections(torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, *SIZE, dtype=torch.bool), 0.0)
            return [nothing for _ in texts]

    assert metrics(dataset, tmp_path, Silent())["segm_mAP"] == 0.0


def test_progress_is_told_and_may_stop(dataset: CocoDataset, tmp_path: Path):
    def stop(done: int, total: int) -> None:
        assert (done, total) == (1, 2)
        raise KeyboardInterrupt

    concepts, options, settings = find_concepts(dataset, {}), DatasetOptions(), EvaluationConfig()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Oracle(), dataset, tmp_path, concepts, options, settings, on_image=stop)


def test_probe_counts_detections_of_things_that_are_not_there(dataset: CocoDataset, tmp_path: Path):
    settings = {"absent_prompts": ["giraffe", "a toy b", "tractor"], "absent_images": 1}
    evaluation = evaluated(dataset, tmp_path, Oracle(fires_on=("tractor",)), **settings)
    rows = [(row.prompt, row.false_alarms, row.images) for row in evaluation.absent]
    assert rows == [("giraffe", 0, 1), ("tractor", 1, 1)]  # "a" and "b" are categories
    assert evaluation.metrics["absent_FPR"] == 0.5
    weak = evaluated(dataset, tmp_path, Oracle(fires_on=("tractor",), score=0.49), **settings)
    assert weak.metrics["absent_FPR"] == 0.0
    assert evaluated(dataset, tmp_path, Oracle(), absent_prompts=[]).metrics["absent_FPR"] is None
