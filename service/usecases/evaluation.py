"""How well a job's model does: base against tuned, put together from what each validation reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from service.shared.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.shared.db.models import Job, JobEvent
    from service.shared.unit_of_work import UnitOfWork

LOWER_IS_BETTER = frozenset({"IL_FPR", "absent_FPR"})
CATEGORY_METRICS = ("segm_mAP", "bbox_mAP")


@dataclass(frozen=True)
class Change:
    """One metric of both models; None where it is not defined or not measured."""

    base: float | None
    tuned: float | None

    @property
    def difference(self) -> float | None:
        return None if self.base is None or self.tuned is None else self.tuned - self.base

    def is_better(self, metric: str) -> bool | None:
        """Whether the tuned model does better; None if it does not differ or cannot be compared."""
        if not self.difference:
            return None
        return (self.difference > 0) != (metric in LOWER_IS_BETTER)


@dataclass(frozen=True)
class CategoryChange:
    name: str
    ids: list[Any]
    metrics: dict[str, Change]


@dataclass(frozen=True)
class Measured:
    """Two models on the same images: what was measured of each, None where nothing was."""

    base: dict[str, Any] | None
    tuned: dict[str, Any] | None

    @property
    def metrics(self) -> dict[str, Change]:
        base, tuned = ((model or {}).get("metrics", {}) for model in (self.base, self.tuned))
        return {name: Change(base.get(name), tuned.get(name)) for name in {**base, **tuned}}

    @property
    def per_category(self) -> list[CategoryChange]:
        """Categories of the dataset, in its order."""
        base, tuned = (_by_category(model) for model in (self.base, self.tuned))
        rows = []
        for key, row in {**base, **tuned}.items():
            changes = {m: Change(base.get(key, {}).get(m), tuned.get(key, {}).get(m)) for m in CATEGORY_METRICS}
            rows.append(CategoryChange(row["name"], row.get("ids", []), changes))
        return rows

    @property
    def notes(self) -> list[str]:
        """Why figures are null, each reason once."""
        found = [note for model in (self.tuned, self.base) if model for note in model.get("notes", [])]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class JobEvaluation(Measured):
    """`base` and `tuned` are the data of `evaluation` events: the base's, and that of the best checkpoint."""

    status: Literal["pending", "running", "complete"]
    metric: str
    history: list[dict[str, Any]]
    """Every validation of the tuned model, by epoch."""


def get_evaluation(unit: UnitOfWork, job_id: str) -> JobEvaluation:
    """What is known so far.

    Raises:
        NotFoundError: if there is no such job.
    """
    job = unit.jobs.get(job_id)
    events = unit.events.list_evaluations(job_id)
    # An attempt that repeats a validation replaces it.
    found = {(event.data.get("model"), event.data.get("epoch")): event.data for event in events}
    tuned = [data for (model, _), data in found.items() if model == "tuned"]
    bases = [data for (model, _), data in found.items() if model == "base"]
    return JobEvaluation(
        status=_status(job, events),
        metric=job.resolved["config"]["evaluation"]["metric"],
        base=bases[-1] if bases else None,
        tuned=_best(job, tuned),
        history=sorted(tuned, key=lambda data: data["epoch"]),
    )


def _status(job: Job, events: Sequence[JobEvent]) -> Literal["pending", "running", "complete"]:
    if job.state in TERMINAL:
        return "complete"
    return "running" if events else "pending"


def _best(job: Job, tuned: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation of the published best checkpoint; while that is being saved, the newest."""
    epoch = (job.best or {}).get("epoch")
    saving = tuned[-1] if tuned and job.state not in TERMINAL else None
    return next((data for data in tuned if data["epoch"] == epoch), saving)


def _by_category(model: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Rows by what tells categories apart, which may share a name."""
    return {f"{row['name']}\n{row.get('ids')}": row for row in (model or {}).get("per_category", [])}
