"""Evaluations of jobs as clients see them."""

from typing import Any, Literal

from service.api.schemas.lists import Read
from service.shared.db.models import Artifact
from service.usecases.evaluation import Change, JobEvaluation


class MetricChange(Read):
    metric: str
    base: float | None
    tuned: float | None
    difference: float | None
    """tuned - base."""
    is_better: bool | None
    """Whether the tuned model does better; null if they are equal or cannot be compared."""


class CategoryRead(Read):
    name: str
    ids: list[str | int]
    """Ids in the dataset; categories that are asked with the same text are one."""
    metrics: list[MetricChange]


class AbsentPrompt(Read):
    """How often something that no image shows was reported."""

    prompt: str
    false_alarms: int
    images: int


class ModelEvaluation(Read):
    """One model on the validation images."""

    epoch: int
    step: int
    images: int
    metrics: dict[str, float | None]
    absent_prompts: list[AbsentPrompt]


class EpochEvaluation(Read):
    epoch: int
    step: int
    is_best: bool
    metrics: dict[str, float | None]


class EvaluationFile(Read):
    """COCO JSON from which pycocotools computes the same figures."""

    model: str
    name: str
    bytes: int
    sha256: str
    url: str


class EvaluationRead(Read):
    """Base against tuned on the validation images. Null figures are explained in `notes`."""

    object: Literal["job.evaluation"] = "job.evaluation"
    job_id: str
    status: Literal["pending", "running", "complete"]
    """`pending`: nothing was measured yet; `running`: more may come; `complete`: the job has ended."""
    metric: str
    """The metric by which the best checkpoint is chosen."""
    base: ModelEvaluation | None
    """The untuned base model; null if it was not measured."""
    tuned: ModelEvaluation | None
    """The best checkpoint."""
    metrics: list[MetricChange]
    per_category: list[CategoryRead]
    notes: list[str]
    history: list[EpochEvaluation]
    """Every validation, by epoch."""
    files: list[EvaluationFile]


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
