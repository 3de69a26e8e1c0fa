"""What lists of jobs can be narrowed down to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import and_, select

from service.shared.db.models import Job, JobLabel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from service.shared.states import JobState

TAG = ""
"""Key of tags among the labels; keys of metadata have at least one character."""


@dataclass(frozen=True)
class JobFilter:
    """Jobs that match every condition given."""

    states: Sequence[JobState] = ()
    project: str | None = None
    dataset_id: str | None = None
    base_model: str | None = None
    sweep_id: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None

    @property
    def labels(self) -> Sequence[tuple[str, str]]:
        """Keys and values of labels that the jobs must have."""
        return [*self.metadata.items(), *((TAG, tag) for tag in self.tags)]

    def leading_label(self) -> ColumnElement[bool] | None:
        """The first of the labels in SQL, for a row of `JobLabel` that is joined to the job: it leads to the jobs."""
        if not self.labels:
            return None
        key, text = self.labels[0]
        return and_(JobLabel.job_id == Job.id, JobLabel.key == key, JobLabel.value == text)

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Everything but the leading label in SQL."""
        if self.states:
            yield Job.state.in_(self.states)
        for column, value in (
            (Job.project, self.project),
            (Job.dataset_id, self.dataset_id),
            (Job.base_model, self.base_model),
            (Job.sweep_id, self.sweep_id),
        ):
            if value is not None:
                yield column == value
        for key, text in self.labels[1:]:
            labelled = select(JobLabel.job_id).where(JobLabel.job_id == Job.id)
            yield labelled.where(JobLabel.key == key, JobLabel.value == text).correlate(Job).exists()
        if self.created_after is not None:
            yield Job.created_at > self.created_after
        if self.created_before is not None:
            yield Job.created_at < self.created_before


ANY_JOB = JobFilter()
