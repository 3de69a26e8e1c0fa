"""Comparisons as clients create and see them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sam3_lora.config import Metric, Section
from service.api.schemas.evaluation import AbsentPrompt
from service.api.schemas.lists import PageQuery, Read, Separated
from service.shared.db.models import Comparison
from service.shared.states import WorkState
from service.usecases.comparisons import ComparisonSpec
from service.usecases.evaluation import Change, Measured

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ComparisonCreate(Section):
    """Two models to measure on one dataset."""

    dataset_id: str = Field(min_length=1, max_length=64, examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
    """Dataset whose images and annotations decide; it must be `ready`."""
    models: list[ModelName] = Field(
        min_length=2,
        max_length=2,
        examples=[["sam3-tiny", "model_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"]],
        json_schema_extra={"uniqueItems": True},
    )
    """Ids of models; the name of a base (sam3, sam3-tiny) is the untuned base. The second is judged by the first. They
    may be of different bases."""
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """For people; null: after the models."""
    split: Literal["validation", "train"] | None = None
    """Images to measure on; null: validation, or train if the dataset has no validation images."""
    max_images: int | None = Field(None, ge=1, le=2**31 - 1)
    """Measure on the first so many images (by id); null: all."""
    metric: Metric = "segm_mAP"
    """What decides which is better."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.models[0] == self.models[1]:
            raise ValueError("models are two different ones")
        return self


class ComparisonQuery(PageQuery):
    status: Annotated[list[WorkState], Separated] = Field([], max_length=20, examples=[["queued", "running"]])
    """Only comparisons in these states; repeat it, or separate them by commas."""
    dataset_id: str | None = Field(None, max_length=48)
    """Only comparisons on this dataset."""
    model: str | None = Field(None, max_length=64)
    """Only comparisons of this model, first or second."""


class ComparedModel(Read):
    model: str
    """As given: id of a model, or name of a base."""
    name: str
    """The model's when the comparison was created."""
    base_model: str
    """What it is tuned from, or is."""
    url: str | None
    """Null for a base. A model may have been deleted since."""


class ComparisonProgress(Read):
    images_done: int
    """Of both models together."""
    images_total: int
    """Of both models together."""


class ComparisonFailure(Read):
    code: str
    """adapter_invalid, base_model_unavailable, dataset_invalid, gpu_oom, model_deleted, split_missing, storage_full,
    time_limit, worker_lost, internal."""
    message: str
    """What went wrong."""
    hint: str
    """What to do about it."""
    retryable: bool
    """Whether the same comparison may succeed later."""


class Figure(Read):
    metric: str
    """Such as `segm_mAP` or `cgF1`."""
    values: list[float | None]
    """Of the models in their order; null where it is not defined on this data."""
    difference: float | None
    """Second - first."""
    better: str | None
    """The model that does better; null if they are equal or cannot be compared."""


class ComparedCategory(Read):
    name: str
    """As the dataset has it."""
    ids: list[str | int]
    """Ids in the dataset; categories that both models are asked for with the same text are one."""
    metrics: list[Figure]
    """`segm_mAP` and `bbox_mAP` of this category alone."""


class ComparedFile(Read):
    """COCO JSON from which pycocotools computes the same figures."""

    model: str
    """One of the two."""
    name: str
    """truth.json, predictions.json or evaluation.json."""
    bytes: int
    """Size."""
    sha256: str
    """Hash of the file."""
    url: str
    """Where it is downloaded."""


class ComparisonResult(Read):
    """Both models on the same images, each asked with its own prompts. Null figures are explained in `notes`."""

    split: Literal["validation", "train"]
    """Images that were measured on."""
    images: int
    """How many."""
    better: str | None
    """The model with the better `metric` of the comparison; null if they are equal or cannot be compared."""
    metrics: list[Figure]
    """Every metric."""
    per_category: list[ComparedCategory]
    """In the order of the dataset."""
    absent_prompts: list[list[AbsentPrompt]]
    """The forgetting probe of the models in their order, by prompt."""
    notes: list[str]
    """Why figures are null."""
    files: list[ComparedFile]
    """What the figures were computed from."""


class ComparisonUrls(Read):
    self: str
    """The comparison."""
    dataset: str
    """The dataset."""
    report: str | None
    """A page with the figures and the worst images; null until it has succeeded."""


class ComparisonRead(Read):
    """Two models measured on one dataset."""

    id: str
    """Opaque."""
    object: Literal["comparison"] = "comparison"
    """Always `comparison`."""
    name: str
    """For people."""
    project: str
    """Whose it is."""
    status: WorkState
    """queued, running, succeeded or failed."""
    is_terminal: bool
    """Whether it has ended."""
    dataset_id: str
    """The dataset."""
    models: list[ComparedModel]
    """The second is judged by the first."""
    split: Literal["validation", "train"] | None
    """As asked for."""
    max_images: int | None
    """As asked for."""
    metric: str
    """What decides which is better."""
    progress: ComparisonProgress | None
    """Null until the first image was measured, and while no worker is at it."""
    result: ComparisonResult | None
    """Null until it has succeeded."""
    error: ComparisonFailure | None
    """Why it failed."""
    created_at: datetime
    """When it was asked for."""
    finished_at: datetime | None
    """When it succeeded or failed."""
    urls: ComparisonUrls
    """Where to go on."""


def comparison_spec(body: ComparisonCreate) -> ComparisonSpec:
    return ComparisonSpec(
        dataset_id=body.dataset_id,
        models=body.models,
        name=body.name,
        split=body.split,
        max_images=body.max_images,
        metric=body.metric,
    )


def comparison_read(comparison: Comparison) -> ComparisonRead:
    url = f"/v1/comparisons/{comparison.id}"
    progress = None
    if comparison.state is not WorkState.QUEUED and comparison.images_total is not None:
        done = comparison.images_done or 0
        progress = ComparisonProgress(images_done=done, images_total=comparison.images_total)
    return ComparisonRead(
        id=comparison.id,
        name=comparison.name,
        project=comparison.project,
        status=comparison.state,
        is_terminal=comparison.finished_at is not None,
        dataset_id=comparison.dataset_id,
        models=[_model(entry) for entry in comparison.models],
        split=comparison.split,
        max_images=comparison.max_images,
        metric=comparison.metric,
        progress=progress,
        result=None if comparison.result is None else _result(comparison, comparison.result, url),
        error=None if comparison.error is None else ComparisonFailure(**comparison.error),
        created_at=comparison.created_at,
        finished_at=comparison.finished_at,
        urls=ComparisonUrls(
            self=url,
            dataset=f"/v1/datasets/{comparison.dataset_id}",
            report=None if comparison.result is None else f"{url}/report",
        ),
    )


def _model(entry: dict[str, Any]) -> ComparedModel:
    is_base = entry["model"] == entry["base_model"]
    return ComparedModel(**entry, url=None if is_base else f"/v1/models/{entry['model']}")


def _result(comparison: Comparison, result: dict[str, Any], url: str) -> ComparisonResult:
    first, second = result["evaluations"]
    measured = Measured(first, second)
    metrics = _figures(comparison, measured.metrics)
    return ComparisonResult(
        split=result["split"],
        images=second["images"],
        better=next((figure.better for figure in metrics if figure.metric == comparison.metric), None),
        metrics=metrics,
        per_category=[
            ComparedCategory(name=row.name, ids=row.ids, metrics=_figures(comparison, row.metrics))
            for row in measured.per_category
        ],
        absent_prompts=[[AbsentPrompt(**row) for row in each["absent_prompts"]] for each in (first, second)],
        notes=measured.notes,
        files=_files(comparison, url),
    )


def _figures(comparison: Comparison, metrics: dict[str, Change]) -> list[Figure]:
    chosen = {True: comparison.second_model, False: comparison.first_model, None: None}
    return [
        Figure(
            metric=name,
            values=[change.base, change.tuned],
            difference=change.difference,
            better=chosen[change.is_better(name)],
        )
        for name, change in metrics.items()
    ]


def _files(comparison: Comparison, url: str) -> list[ComparedFile]:
    found = []
    for file in comparison.files:
        number, _, name = file.name.partition("/")
        if name:  # the report lies beside the models' folders
            model = comparison.models[int(number)]["model"]
            place = f"{url}/evaluation/{model}/{name}"
            found.append(ComparedFile(model=model, name=name, bytes=file.size_bytes, sha256=file.sha256, url=place))
    return found
