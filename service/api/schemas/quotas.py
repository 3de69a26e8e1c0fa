"""Quotas and usage as clients see them."""

import contextlib
import re
from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sam3_lora.config import Section
from service.api.schemas.jobs import Project
from service.api.schemas.lists import Read
from service.shared.db.models import ProjectQuota
from service.shared.db.repositories.quotas import Limits, limits_of
from service.shared.errors import invalid
from service.shared.states import JobState
from service.usecases.quotas import Allowance, Quota
from service.usecases.usage import Bucket, GroupBy

Limit = Annotated[int | None, Field(ge=0, lt=2**63)]
MAX_DAYS = 366
ISO_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class QuotaLimits(Section):
    """What a project may use; null: any amount."""

    max_active_jobs: Limit = None
    """Jobs that have not ended."""
    max_running_gpus: Limit = None
    """GPUs of running jobs together; others wait in the queue."""
    max_gpu_seconds_per_month: Limit = None
    """In a calendar month, UTC. Then no job is created or started; what runs goes on."""
    max_stored_bytes: Limit = None
    """Of datasets, uploads, checkpoints, models, exports and reports."""
    max_datasets: Limit = None
    """Datasets, in whatever state."""

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class ProjectQuotaRead(Read):
    """The limits of a project that has its own."""

    object: Literal["project_quota"] = "project_quota"
    project: str
    """The project."""
    limits: QuotaLimits
    """Its limits."""
    updated_at: datetime
    """When they were last set."""


class ProjectQuotaList(Read):
    object: Literal["list"] = "list"
    default: QuotaLimits
    """The limits of all others."""
    data: list[ProjectQuotaRead]
    """Projects with limits of their own."""


class AllowanceRead(Read):
    limit: int | None
    """null: none."""
    used: float
    """What counts now."""
    remaining: float | None
    """null: any amount."""
    resets_at: datetime | None
    """When it begins anew by itself; null: what counts is what there is now."""


class QuotaRead(Read):
    """What a project may use, and has used."""

    object: Literal["quota"] = "quota"
    project: str
    """The project."""
    active_jobs: AllowanceRead
    """Jobs that have not ended."""
    running_gpus: AllowanceRead
    """GPUs of running jobs together."""
    gpu_seconds: AllowanceRead
    """This month."""
    stored_bytes: AllowanceRead
    """Of datasets, uploads, checkpoints, models, exports and reports."""
    datasets: AllowanceRead
    """Datasets, in whatever state."""


def _day(value: object) -> object:
    """Only YYYY-MM-DD: `date` would also take numbers of seconds."""
    if isinstance(value, str) and ISO_DAY.fullmatch(value):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError("must be a day, as in 2026-01-31")


Day = Annotated[date, BeforeValidator(_day)]


class QuotaQuery(BaseModel):
    """Whose quota."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    project: Project | None = None
    """With a key for all projects: this one's, else that of `default`."""


class UsageQuery(QuotaQuery):
    """Of which time, and how it is told."""

    from_: Day | None = Field(None, alias="from", examples=["2026-11-01"])
    """First day (UTC); omitted: the first of the month."""
    to: Day | None = Field(None, examples=["2026-11-30"])
    """Last day; omitted: today."""
    group_by: GroupBy = GroupBy.DAY
    """What each entry of `data` is about."""
    project: Project | None = None
    """With a key for all projects: only this one's."""

    def days(self, today: date) -> tuple[date, date]:
        """The first and the last day.

        Raises:
            InvalidRequestError: if there are none or too many between them.
        """
        last = self.to or (today if self.from_ is None else max(today, self.from_))
        first = self.from_ or last.replace(day=1)
        if not 0 <= (last - first).days < MAX_DAYS:
            message = f"from is not after to, and there are at most {MAX_DAYS} days"
            raise invalid("/query/from", "days", message)
        return first, last


class UsageJobs(Read):
    """Jobs that ended."""

    succeeded: int
    """That succeeded."""
    failed: int
    """That failed."""
    cancelled: int
    """That were cancelled."""


class UsageBucket(Read):
    """What was used in one day or month, or by one project."""

    start: date | None
    """The day, or the first of the month; null by project."""
    project: str | None
    """null: of all projects."""
    gpu_seconds: float
    """Of attempts on those days; of one that goes on, up to its last heartbeat."""
    jobs: UsageJobs
    """Jobs that ended on those days."""


class UsageRead(Read):
    """What was used."""

    object: Literal["usage"] = "usage"
    first_day: date
    """The first day that counts (UTC)."""
    last_day: date
    """The last day that counts."""
    total: UsageBucket
    """All of it together."""
    stored_bytes: int | None
    """Now, whatever the days; null for all projects together."""
    data: list[UsageBucket]
    """In order; days, months and projects without usage are left out."""


def quota_read(quota: Quota) -> QuotaRead:
    names = ("active_jobs", "running_gpus", "gpu_seconds", "stored_bytes", "datasets")
    return QuotaRead(project=quota.project, **{name: _allowance(getattr(quota, name)) for name in names})


def limits_read(limits: Limits) -> QuotaLimits:
    return QuotaLimits(**{name: getattr(limits, name) for name in QuotaLimits.model_fields})


def project_quota_read(row: ProjectQuota) -> ProjectQuotaRead:
    return ProjectQuotaRead(project=row.project, limits=limits_read(limits_of(row)), updated_at=row.updated_at)


def usage_read(first: date, last: date, total: Bucket, groups: list[Bucket], stored_bytes: int | None) -> UsageRead:
    return UsageRead(
        first_day=first,
        last_day=last,
        total=_bucket(total),
        stored_bytes=stored_bytes,
        data=[_bucket(group) for group in groups],
    )


def _allowance(allowance: Allowance) -> AllowanceRead:
    limit, used = allowance.limit, allowance.used
    remaining = None if limit is None else max(0.0, limit - used)
    return AllowanceRead(limit=limit, used=used, remaining=remaining, resets_at=allowance.resets_at)


def _bucket(bucket: Bucket) -> UsageBucket:
    jobs = UsageJobs(
        succeeded=bucket.outcomes[JobState.SUCCEEDED],
        failed=bucket.outcomes[JobState.FAILED],
        cancelled=bucket.outcomes[JobState.CANCELLED],
    )
    return UsageBucket(start=bucket.start, project=bucket.project, gpu_seconds=bucket.gpu_seconds, jobs=jobs)
