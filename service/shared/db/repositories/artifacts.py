"""Published files of jobs that are no checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, or_, select

from service.shared.db.models import Artifact
from service.shared.db.repositories.fencing import write_fenced
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.storage import StoredFile


class ArtifactRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def publish(self, job_id: str, epoch: int, place: str, files: Mapping[str, StoredFile]) -> Sequence[str]:
        """Make files visible instead of those that had the name `place` or lay below it.

        Doing it again changes nothing. Returns the storage keys to delete once the transaction has committed.

        Args:
            files: by name, each `place` itself or below it.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        now = self._clock.now()
        write_fenced(self._session, job_id, epoch, updated_at=now)
        within = or_(Artifact.name == place, Artifact.name.startswith(f"{place}/", autoescape=True))
        replaced = (
            delete(Artifact)
            .where(Artifact.job_id == job_id, within)
            .returning(Artifact.storage_key)
            .execution_options(synchronize_session=False)
        )
        keys = set(self._session.scalars(replaced))
        rows = [
            {
                "job_id": job_id,
                "name": name,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "storage_key": file.key,
                "created_at": now,
            }
            for name, file in files.items()
        ]
        self._session.execute(insert(Artifact), rows)
        return sorted(keys - {file.key for file in files.values()})

    def get(self, job_id: str, name: str) -> Artifact:
        """One file.

        Raises:
            NotFoundError: if the job has none of that name.
        """
        artifact = self._session.get(Artifact, (job_id, name))
        if artifact is None:
            raise NotFoundError(f"Job {job_id!r} has no {name!r}; it may not have come so far.")
        return artifact

    def list(self, job_id: str, place: str, called: str = "") -> Sequence[Artifact]:
        """The files below a folder, by name.

        Args:
            called: only those with this name, in whatever folder below it.
        """
        below = Artifact.name.startswith(f"{place}/", autoescape=True)
        query = select(Artifact).where(Artifact.job_id == job_id, below).order_by(Artifact.name)
        if called:
            query = query.where(Artifact.name.endswith(f"/{called}", autoescape=True))
        return self._session.scalars(query).all()

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that a published file names."""
        return set(self._session.scalars(select(Artifact.storage_key).where(Artifact.storage_key.in_(keys))))
