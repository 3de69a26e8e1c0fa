"""Base and tuned model on the same annotated images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sam3_lora.coco import schema
from sam3_lora.config import DatasetOptions, EvaluationConfig
from sam3_lora.data.concepts import find_concepts
from sam3_lora.errors import DatasetError
from sam3_lora.evaluation.coco_metrics import Evaluation, evaluate
from sam3_lora.evaluation.predict import open_predictor
from sam3_lora.lora.layers import adapters_off

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def compare(
    images: Path,
    annotations: Path,
    *,
    adapter: Path | None = None,
    base: str = "sam3",
    checkpoint: Path | None = None,
    max_images: int | None = None,
    export: Path | None = None,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Evaluation]:
    """Evaluate the base and, where an adapter is given, the tuned model: keys "base" and "tuned".

    Args:
        images: folder that the `file_name`s are relative to.
        annotations: COCO JSON.
        adapter: adapter folder; its configuration names the base and the prompts of its categories.
        export: folder that gets `base/` and `tuned/`, each with `truth.json`, `predictions.json` and
            `evaluation.json`.
        on_image: called with (images done, images in all) over both models.

    Raises:
        DatasetError: if the data cannot be read or has no images.
        AdapterError, BaseModelError: if the models cannot be had.
    """
    dataset = schema.load(annotations)
    if not dataset.images:
        raise DatasetError(f"{annotations} lists no images", hint="evaluation needs at least one")
    predictor, info = open_predictor(adapter, base=base, checkpoint=checkpoint)
    prompts = {} if info is None else {category: [text] for category, text in info.prompts.items()}
    concepts = find_concepts(dataset, prompts)
    models = ("base",) if adapter is None else ("base", "tuned")
    found: dict[str, Evaluation] = {}

    def measure() -> Evaluation:
        before = len(found)
        return evaluate(
            predictor,
            dataset,
            images,
            concepts,
            DatasetOptions(),
            EvaluationConfig(max_images=max_images),
            export=None if export is None else export / models[before],
            on_image=lambda done, total: on_image(before * total + done, len(models) * total),
        )

    with adapters_off(predictor.model):
        found["base"] = measure()
    if adapter is not None:
        found["tuned"] = measure()
    return found
