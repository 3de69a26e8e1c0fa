"""Models on the same annotated images: a base alone, base and tuned, or any two against each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sam3_lora.coco import schema
from sam3_lora.config import BaseName, DatasetOptions, EvaluationConfig
from sam3_lora.data.concepts import shared_concepts
from sam3_lora.errors import DatasetError
from sam3_lora.evaluation.coco_metrics import Evaluation, evaluate
from sam3_lora.evaluation.predict import Predictor, place
from sam3_lora.evaluation.probe import not_in_dataset
from sam3_lora.lora.adapter import read_info
from sam3_lora.lora.switch import AdapterSwitch
from sam3_lora.model.weights import architecture_of, load_base

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from sam3_lora.lora.adapter import AdapterInfo


@dataclass(frozen=True)
class Candidate:
    """A model to measure: an adapter on its base or, without one, a base."""

    adapter: Path | None = None
    base: str = "sam3"

    @classmethod
    def named(cls, text: str) -> Candidate:
        """The base of that name, else the adapter in that folder."""
        return cls(base=text) if text in get_args(BaseName) else cls(Path(text))


def compare(
    images: Path,
    annotations: Path,
    models: Mapping[str, Candidate],
    *,
    checkpoint: Path | None = None,
    max_images: int | None = None,
    export: Path | None = None,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Evaluation]:
    """Evaluate models, each on all of the images; the results have the keys of `models`.

    An adapter is asked with the prompts that it was trained with, at its resolution, as where it is deployed. A base
    has neither of its own: it takes the prompts of the first adapter among the models, and if that is one of its own,
    its resolution.

    Args:
        images: folder that the `file_name`s are relative to.
        annotations: COCO JSON.
        checkpoint: official weights on disk, for base "sam3"; None: the hub.
        export: folder that gets one for each model, with `truth.json`, `predictions.json` and `evaluation.json`. The
            truth is the same for all.
        on_image: called with (images done, images in all) over all models; may raise to stop.

    Raises:
        DatasetError: if the data cannot be read or has no images.
        AdapterError, BaseModelError: if the models cannot be had.
    """
    dataset = schema.load(annotations)
    if not dataset.images:
        raise DatasetError(f"{annotations} lists no images", hint="evaluation needs at least one")
    infos = [None if model.adapter is None else read_info(model.adapter) for model in models.values()]
    lender = next((info for info in infos if info is not None), None)
    prompts = [{} if (own := info or lender) is None else own.prompts for info in infos]
    concepts = shared_concepts(dataset, prompts)
    absent = EvaluationConfig().absent_prompts
    for asked in concepts:  # none is asked for what another has a word for: the same questions for all
        absent = not_in_dataset(absent, asked)
    settings = EvaluationConfig(max_images=max_images, absent_prompts=absent)
    loaded = _Loaded(checkpoint)
    found: dict[str, Evaluation] = {}
    for number, (name, model) in enumerate(models.items()):
        found[name] = evaluate(
            loaded.predictor(model, infos[number], lender),
            dataset,
            images,
            concepts[number],
            DatasetOptions(),
            settings,
            export=None if export is None else export / name,
            on_image=partial(_count, on_image, number, len(models)),
        )
    return found


def _count(on_image: Callable[[int, int], object], models_done: int, models: int, done: int, total: int) -> None:
    on_image(models_done * total + done, models * total)


class _Loaded:
    """One base in memory, which models in a row share."""

    def __init__(self, checkpoint: Path | None) -> None:
        self._checkpoint = checkpoint
        self._key: tuple[str, int] | None = None
        self._switch: AdapterSwitch | None = None
        self._amp_dtype: torch.dtype | None = None

    def predictor(self, model: Candidate, info: AdapterInfo | None, lender: AdapterInfo | None) -> Predictor:
        """The predictor of a model, to be used before another is asked for."""
        base = model.base if info is None else info.base_model
        own = info or (lender if lender is not None and lender.base_model == base else None)
        resolution = architecture_of(base).image_size if own is None else own.resolution
        if self._switch is None or self._key != (base, resolution):
            self._switch = None  # the memory of one base must do
            loaded, self._amp_dtype = place(load_base(base, checkpoint=self._checkpoint, resolution=resolution), "auto")
            self._switch, self._key = AdapterSwitch(loaded, keep=1), (base, resolution)
        if model.adapter is None:
            self._switch.use_none()
        else:
            self._switch.use(str(model.adapter), model.adapter)
        return Predictor(self._switch.model, resolution=resolution, amp_dtype=self._amp_dtype)
