"""Limits of projects, and what of it is in use now."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import case, delete, func, literal, select, text, union

from service.shared.db.models import (
    Artifact,
    Checkpoint,
    CheckpointFile,
    Comparison,
    ComparisonFile,
    Dataset,
    Export,
    Job,
    Model,
    ModelFile,
    ProjectQuota,
    Upload,
    UploadPart,
)
from service.shared.db.models.base import EVERYBODY
from service.shared.db.repositories.inserts import insert_minding
from service.shared.errors import NotFoundError, QuotaExceededError, fault
from service.shared.states import LEASED, LIVE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.usage import UsageRepository
    from service.shared.settings import Settings

LOCK = text("SELECT pg_advisory_xact_lock(:kind, hashtext(:name))")
KNOWN_FOR_S = 1.0
SUM_KNOWN_FOR_S = 5.0
NEAR = 0.95  # of a limit: from there on sums are counted as often as limits are looked up
MAX_KNOWN = 10_000
GROWTH, CLAIMS = 7301, 7302  # kinds of locks, which nothing else in the database may use


@dataclass(frozen=True)
class Limits:
    """What a project may use; None: any amount."""

    max_active_jobs: int | None = None
    max_running_gpus: int | None = None
    max_gpu_seconds_per_month: int | None = None
    max_stored_bytes: int | None = None
    max_datasets: int | None = None

    @classmethod
    def default(cls, settings: Settings) -> Limits:
        """Those of a project that has none of its own."""
        return cls(
            max_active_jobs=settings.quota_active_jobs,
            max_running_gpus=settings.quota_running_gpus,
            max_gpu_seconds_per_month=settings.quota_gpu_seconds_per_month,
            max_stored_bytes=settings.quota_stored_bytes,
            max_datasets=settings.quota_datasets,
        )

    def gpus_left(self, running_gpus: int, gpu_seconds: float) -> int | None:
        """GPUs that further jobs may take, where so many are taken and so much was used this month; None: any."""
        if self.max_gpu_seconds_per_month is not None and gpu_seconds >= self.max_gpu_seconds_per_month:
            return 0
        return None if self.max_running_gpus is None else max(0, self.max_running_gpus - running_gpus)


@dataclass
class QuotaMemory:
    """What one process has seen within the last seconds: jobs are created and claimed without looking each time."""

    _known: dict[str, tuple[Limits, float]] = field(default_factory=dict)
    _sums: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)

    def recall(self, projects: Collection[str], now_s: float) -> dict[str, Limits]:
        """Those of the projects that need not be looked up."""
        found = {project: self._known[project] for project in projects if project in self._known}
        return {project: limits for project, (limits, until_s) in found.items() if now_s < until_s}

    def keep(self, limits: Mapping[str, Limits], now_s: float) -> None:
        """Remember limits that were looked up just now."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known |= {project: (own, now_s + KNOWN_FOR_S) for project, own in limits.items()}

    def recall_sum(self, key: tuple[str, ...], limit: int, now_s: float) -> float | None:
        """A sum that need not be counted again to be compared with the limit."""
        used, counted_s = self._sums.get(key, (0.0, float("-inf")))
        good_for_s = KNOWN_FOR_S if used >= NEAR * limit else SUM_KNOWN_FOR_S
        return used if now_s - counted_s < good_for_s else None

    def keep_sum(self, key: tuple[str, ...], used: float, now_s: float) -> None:
        """Remember a sum that was counted just now."""
        if len(self._sums) >= MAX_KNOWN:
            self._sums.clear()
        self._sums[key] = used, now_s

    def forget(self, projects: Collection[str]) -> None:
        """Look projects up again: their limits were changed."""
        for project in projects:
            self._known.pop(project, None)


class QuotaRepository:
    def __init__(
        self, session: Session, clock: Clock, usage: UsageRepository, default: Limits, memory: QuotaMemory
    ) -> None:
        self._session = session
        self._clock = clock
        self._usage = usage
        self._memory = memory
        self._is_postgresql = session.get_bind().dialect.name == "postgresql"
        self.default = default
        self.changed: dict[str, Limits] = {}
        """By this transaction."""

    def of(self, projects: Collection[str]) -> dict[str, Limits]:
        """The limits of projects, as they were within the last second."""
        now_s = self._clock.monotonic()
        known = self._memory.recall(projects, now_s)
        if unknown := set(projects) - known.keys():
            rows = select(ProjectQuota).where(ProjectQuota.project.in_(unknown))
            own = self._session.scalars(rows.execution_options(**EVERYBODY))
            found = dict.fromkeys(unknown, self.default) | {row.project: limits_of(row) for row in own}
            self._memory.keep(found, now_s)
            known |= found
        known |= self.changed
        return {project: known[project] for project in projects}

    def list(self) -> Sequence[ProjectQuota]:
        """Projects that have limits of their own, by name."""
        return self._session.scalars(select(ProjectQuota).order_by(ProjectQuota.project)).all()

    def get(self, project: str) -> ProjectQuota:
        """A project's own limits.

        Raises:
            NotFoundError: if it has none.
        """
        own = self._session.get(ProjectQuota, project)
        if own is None:
            raise NotFoundError(f"Project {project!r} has no limits of its own: those of all others are its.")
        return own

    def set(self, project: str, limits: Limits) -> None:
        """Give a project limits of its own, in place of all that it had."""
        values = {"project": project, "updated_at": self._clock.now(), **asdict(limits)}
        insert = insert_minding(self._session, ProjectQuota).values(**values)
        self._session.execute(insert.on_conflict_do_update(index_elements=["project"], set_=values))
        self.changed[project] = limits

    def remove(self, project: str) -> None:
        """Give a project the limits of the settings again."""
        self._session.execute(delete(ProjectQuota).where(ProjectQuota.project == project))
        self.changed[project] = self.default

    def lock(self, projects: Collection[str]) -> None:
        """Let nobody else who locks them too add anything to the projects until the transaction ends."""
        for project in sorted(projects):
            self._lock(GROWTH, project)

    def lock_room(self, project: str) -> int | None:
        """GPUs that jobs of the project may be claimed for; None: any number.

        Until the transaction ends nobody else claims a job of a project that is limited so.
        """
        limits = self.of([project])[project]
        if limits.max_running_gpus is None and limits.max_gpu_seconds_per_month is None:
            return None
        # One lock for all such projects: a claim may look at several, and none would wait in the same order.
        self._lock(CLAIMS, "")
        spent = self.recent_gpu_seconds([project]).get(project, 0.0)
        return limits.gpus_left(self.running_gpus(project), spent)

    def require_bytes(self, project: str, new_bytes: int) -> None:
        """Let storage keep so much more for the project; nobody else adds to it until the transaction ends.

        Raises:
            QuotaExceededError: if that is more than the project may have.
        """
        most = self.of([project])[project].max_stored_bytes
        if most is None:
            return
        self.lock([project])
        now_s, stored = self._clock.monotonic(), self.stored_bytes(project)
        left = most - stored
        is_refused = new_bytes > left
        self._memory.keep_sum(("bytes", project), stored if is_refused else stored + new_bytes, now_s)
        if is_refused:
            free = max(0, left)
            message = f"Project {project!r} may store {most} bytes, {free} are left: delete jobs, models or datasets."
            raise QuotaExceededError(message, errors=[fault("", "max_stored_bytes", message)])

    def recent_gpu_seconds(self, projects: Collection[str]) -> dict[str, float]:
        """GPU seconds of this month (UTC) of those of the projects that have a limit of them, as they were within the
        last seconds; near the limit or beyond it, within the last second.
        """
        now_s, month = self._clock.monotonic(), f"{self._clock.now():%Y-%m}"
        limits = {project: limits.max_gpu_seconds_per_month for project, limits in self.of(projects).items()}
        known, unknown = {}, []
        for project, most in limits.items():
            if most is None:
                continue
            used = self._memory.recall_sum(("gpu_seconds", project, month), most, now_s)
            if used is None:
                unknown.append(project)
            else:
                known[project] = used
        counted = self._usage.spent_this_month(unknown)
        for project, used in counted.items():
            self._memory.keep_sum(("gpu_seconds", project, month), used, now_s)
        return known | counted

    def recent_bytes(self, project: str, limit: int) -> float:
        """What storage holds for a project, as it was within the last seconds; near the limit or beyond it, within the
        last second.
        """
        now_s = self._clock.monotonic()
        used = self._memory.recall_sum(("bytes", project), limit, now_s)
        if used is None:
            used = self.stored_bytes(project)
            self._memory.keep_sum(("bytes", project), used, now_s)
        return used

    def active_jobs(self, projects: Collection[str]) -> dict[str, int]:
        """Jobs of projects that have not ended."""
        # By the index of states: SQLite would read all jobs that the project ever had, if it were told of one.
        project = Job.project if self._is_postgresql else func.coalesce(Job.project, "")
        live = select(Job.project, func.count()).where(Job.state.in_(LIVE), project.in_(projects)).group_by(Job.project)
        rows = self._session.execute(live.execution_options(**EVERYBODY))
        return dict.fromkeys(projects, 0) | {project: count for project, count in rows}  # noqa: C416 - typed

    def running_gpus(self, project: str) -> int:
        """GPUs of the jobs of a project that workers hold."""
        held = select(Job.project, Job.gpus).where(Job.state.in_(LEASED))  # of all projects: so many workers there are
        rows = self._session.execute(held.execution_options(**EVERYBODY))
        return sum(gpus for owner, gpus in rows if owner == project)

    def datasets(self, project: str) -> int:
        """Datasets of a project."""
        there = (
            select(func.count()).select_from(Dataset).where(Dataset.project == project, Dataset.deleted_at.is_(None))
        )
        return self._session.scalar(there) or 0

    def stored_bytes(self, project: str) -> int:
        """What storage holds for a project: archives, uploads at their announced size or that of their parts, if it is
        more, and what its jobs, models, exports and comparisons left. A file that several rows name counts once.
        """
        sent = (
            select(func.coalesce(func.sum(UploadPart.size_bytes), 0))
            .where(UploadPart.upload_id == Upload.id)
            .scalar_subquery()
        )
        of_upload = case((sent > Upload.size_bytes, sent), else_=Upload.size_bytes)
        of_jobs = (Job.project == project, Job.deleted_at.is_(None))
        of_models = Model.project == project
        files = union(
            select(Dataset.storage_key.label("key"), Dataset.size_bytes.label("size")).where(
                Dataset.project == project, Dataset.deleted_at.is_(None), Dataset.storage_key.is_not(None)
            ),
            select(func.coalesce(Upload.storage_key, Upload.id), of_upload).where(Upload.project == project),
            select(CheckpointFile.storage_key, CheckpointFile.size_bytes)
            .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_id)
            .join(Job, Job.id == Checkpoint.job_id)
            .where(*of_jobs),
            select(Artifact.storage_key, Artifact.size_bytes).join(Job, Job.id == Artifact.job_id).where(*of_jobs),
            select(ModelFile.storage_key, ModelFile.size_bytes)
            .join(Model, Model.id == ModelFile.model_id)
            .where(of_models),
            select(Export.storage_key, func.coalesce(Export.size_bytes, literal(0)))
            .join(Model, Model.id == Export.model_id)
            .where(of_models, Export.storage_key.is_not(None)),
            select(ComparisonFile.storage_key, ComparisonFile.size_bytes)
            .join(Comparison, Comparison.id == ComparisonFile.comparison_id)
            .where(Comparison.project == project),
        ).subquery()
        return int(self._session.scalar(select(func.coalesce(func.sum(files.c.size), 0))) or 0)

    def _lock(self, kind: int, name: str) -> None:
        # A transaction that writes to SQLite is the only one anyway.
        if self._is_postgresql:
            self._session.execute(LOCK, {"kind": kind, "name": name})


def limits_of(row: ProjectQuota) -> Limits:
    """As the row has them."""
    return Limits(**{name: getattr(row, name) for name in Limits.__dataclass_fields__})
