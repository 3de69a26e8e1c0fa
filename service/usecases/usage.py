"""What was used in which time, by project."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.shared.states import JobState
    from service.shared.unit_of_work import UnitOfWork


class GroupBy(StrEnum):
    DAY = "day"
    MONTH = "month"
    PROJECT = "project"


@dataclass
class Bucket:
    """Usage of one day, month or project; `start` None: of the whole time, `project` None: of all."""

    start: date | None = None
    project: str | None = None
    gpu_seconds: float = 0.0
    outcomes: Counter[JobState] = field(default_factory=Counter)


def usage(unit: UnitOfWork, first: date, last: date, by: GroupBy, project: str | None) -> tuple[Bucket, list[Bucket]]:
    """The usage of a project (None: of all that the unit sees) from the first to the last day: total, and by groups.

    Groups are in order; where nothing was used there is none.
    """
    total, groups = Bucket(project=project), dict[str, Bucket]()

    def of(day: date, owner: str) -> Bucket:
        if by is GroupBy.PROJECT:
            return groups.setdefault(owner, Bucket(project=owner))
        start = day if by is GroupBy.DAY else day.replace(day=1)
        return groups.setdefault(start.isoformat(), Bucket(start, project))

    for spent in unit.usage.spent(first, last, None if project is None else [project]):
        for bucket in (total, of(spent.day, spent.project)):
            bucket.gpu_seconds += spent.gpu_seconds
    for ended in unit.usage.ended(first, last, project):
        for bucket in (total, of(ended.day, ended.project)):
            bucket.outcomes[ended.outcome] += ended.jobs
    return total, [groups[key] for key in sorted(groups)]
