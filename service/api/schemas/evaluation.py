"""Evaluations of jobs as clients see them."""

from typing import Any, Literal

from service.api.schemas.lists import Read
from service.shared.db.models import Artifact
from service.usecases.evaluation import Change, JobEvaluation


class MetricChange(Read):
    metric: str
    """Such as `segm_mAP` or `cgF1`."""
    base: float | None
    """Of the base model."""
    tuned: float | None
    """Of the best checkpoint."""
    difference: float | None
    """tuned - base."""
    is_better: bool | None
    """Whether the tuned model does better; null if they are equal or cannot be compared."""


class CategoryRead(Read):
    name: str
    """As the dataset has it."""
    ids: list[str | int]
    """Ids in the dataset; categories that are asked with the same text are one."""
    metrics: list[MetricChange]
    """`segm_mAP` and `bbox_mAP` of this category alone."""


class AbsentPrompt(Read):
    """How often something that no image shows was reported."""

    prompt: str
    """The word that was asked."""
    false_alarms: int
    """Images on which it was reported."""
    images: int
    """Images that it was asked about."""


class ModelEvaluation(Read):
    """One model on the validation images."""

    epoch: int
    """After which it was measured; 0: before training."""
    step: int
    """Optimiser steps taken until then."""
    images: int
    """Validation images."""
    metrics: dict[str, float | None]
    """By name; null where it is not defined on this data."""
    absent_prompts: list[AbsentPrompt]
    """The forgetting probe, by prompt."""


class EpochEvaluation(Read):
    epoch: int
    """Counts from 1."""
    step: int
    """Optimiser steps taken until then."""
    is_best: bool
    """Whether this is the published best checkpoint."""
    metrics: dict[str, float | None]
    """By name; null where it is not defined on this data."""


class EvaluationFile(Read):
    """COCO JSON from which pycocotools computes the same figures."""

    model: str
    """base or tuned."""
    name: str
    """truth.json, predictions.json or evaluation.json."""
    bytes: int
    """Size."""
    sha256: str
    """Hash of the file."""
    url: str
    """Where it is downloaded."""


class EvaluationRead(Read):
    """Base against tuned on the validation images. Null figures are explained in `notes`."""

    object: Literal["job.evaluation"] = "job.evaluation"
    """Always `job.evaluation`."""
    job_id: str
    """The job."""
    status: Literal["pending", "running", "complete"]
    """`pending`: nothing was measured yet; `running`: more may come; `complete`: the job has ended."""
    metric: str
    """The metric by which the best checkpoint is chosen."""
    base: ModelEvaluation | None
    """The untuned base model; null if it was not measured."""
    tuned: ModelEvaluation | None
    """The best checkpoint."""
    metrics: list[MetricChange]
    """Every metric of both models."""
    per_category: list[CategoryRead]
    """In the order of the dataset."""
    notes: list[str]
    """Why figures are null."""
    history: list[EpochEvaluation]
    """Every validation, by epoch."""
    files: list[EvaluationFile]
    """What the figures were computed from."""


def evaluation_read(job_id: str, found: JobEvaluation, files: list[Artifact]) -> EvaluationRead:
    best_epoch = None if found.tuned is None else found.tuned["epoch"]
    return EvaluationRead(
        job_id=job_id,
        status=found.status,
        metric=found.metric,
        base=_model(found.base),
        tuned=_model(found.tuned),
        metrics=_changes(found.metrics),
        per_category=[
            CategoryRead(name=row.name, ids=row.ids, metrics=_changes(row.metrics)) for row in found.per_category
        ],
        notes=found.notes,
        history=[
            EpochEvaluation(
                epoch=data["epoch"],
                step=data.get("step", 0),
                is_best=data["epoch"] == best_epoch,
                metrics=data["metrics"],
            )
            for data in found.history
        ],
        files=[_file(job_id, file) for file in files],
    )


def _model(data: dict[str, Any] | None) -> ModelEvaluation | None:
    if data is None:
        return None
    return ModelEvaluation(
        epoch=data["epoch"],
        step=data.get("step", 0),
        images=data["images"],
        metrics=data["metrics"],
        absent_prompts=[AbsentPrompt(**row) for row in data.get("absent_prompts", [])],
    )


def _changes(metrics: dict[str, Change]) -> list[MetricChange]:
    return [
        MetricChange(
            metric=name,
            base=change.base,
            tuned=change.tuned,
            difference=change.difference,
            is_better=change.is_better(name),
        )
        for name, change in metrics.items()
    ]


def _file(job_id: str, file: Artifact) -> EvaluationFile:
    _, model, name = file.name.split("/")
    url = f"/v1/jobs/{job_id}/evaluation/{model}/{name}"
    return EvaluationFile(model=model, name=name, bytes=file.size_bytes, sha256=file.sha256, url=url)
