"""Published checkpoints of jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from service.shared.db.models import Checkpoint, CheckpointFile, Job
from service.shared.db.repositories.fencing import write_fenced
from service.shared.errors import NotFoundError
from service.shared.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.outbox import Outbox
    from service.shared.storage import StoredFile


@dataclass(frozen=True)
class CheckpointManifest:
    """A checkpoint whose files are complete in storage. `epoch` and `step` are the training's."""

    kind: str
    epoch: int
    step: int
    metric: str | None
    value: float | None
    files: dict[str, StoredFile]
    """By file name."""
    crc32: dict[str, int] = field(default_factory=dict)
    """By file name; without it there is no archive."""
    archive_sha256: str | None = None


class CheckpointRepository:
    def __init__(self, session: Session, clock: Clock, outbox: Outbox) -> None:
        self._session = session
        self._clock = clock
        self._outbox = outbox

    def publish(self, job_id: str, epoch: int, manifest: CheckpointManifest) -> Checkpoint:
        """Make a checkpoint visible; one of kind `best` also becomes the job's `best`.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        now = self._clock.now()
        checkpoint_id = new_id("ckpt")
        values: dict[str, object] = {"updated_at": now}
        if manifest.kind == "best":
            values["best"] = {
                "checkpoint_id": checkpoint_id,
                "metric": manifest.metric,
                "value": manifest.value,
                "epoch": manifest.epoch,
            }
        job = write_fenced(self._session, job_id, epoch, **values)
        checkpoint = Checkpoint(
            id=checkpoint_id,
            job_id=job_id,
            attempt=job.attempt,
            kind=manifest.kind,
            epoch=manifest.epoch,
            step=manifest.step,
            metric=manifest.metric,
            value=manifest.value,
            archive_sha256=manifest.archive_sha256,
            created_at=now,
            files=[
                CheckpointFile(
                    name=name,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    crc32=manifest.crc32.get(name),
                    storage_key=file.key,
                )
                for name, file in sorted(manifest.files.items())
            ],
        )
        self._session.add(checkpoint)
        self._session.flush()
        self._outbox.note_checkpoint(job, checkpoint)
        return checkpoint

    def remove(self, job_id: str, epoch: int, checkpoint_ids: Sequence[str]) -> Sequence[str]:
        """Withdraw checkpoints; the storage keys to delete once the transaction has committed.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        write_fenced(self._session, job_id, epoch, updated_at=self._clock.now())
        chosen = select(Checkpoint.id).where(Checkpoint.job_id == job_id, Checkpoint.id.in_(checkpoint_ids))
        of_chosen = CheckpointFile.checkpoint_id.in_(chosen)
        keys = self._session.scalars(select(CheckpointFile.storage_key).where(of_chosen)).all()
        self._session.execute(delete(CheckpointFile).where(of_chosen).execution_options(synchronize_session=False))
        self._session.execute(
            delete(Checkpoint)
            .where(Checkpoint.job_id == job_id, Checkpoint.id.in_(checkpoint_ids))
            .execution_options(synchronize_session=False)
        )
        return keys

    def get(self, checkpoint_id: str) -> Checkpoint:
        """The checkpoint.

        Raises:
            NotFoundError: if there is none.
        """
        checkpoint = self.find(checkpoint_id)
        if checkpoint is None:
            raise NotFoundError(f"There is no checkpoint {checkpoint_id!r}; a newer one may have taken its place.")
        return checkpoint

    def list(self, job_id: str) -> Sequence[Checkpoint]:
        """Published checkpoints of a job, newest first: by attempt and step, since hosts' clocks differ."""
        newest_first = (
            Checkpoint.attempt.desc(),
            Checkpoint.step.desc(),
            Checkpoint.created_at.desc(),
            Checkpoint.id.desc(),
        )
        return self._session.scalars(
            select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(*newest_first)
        ).all()

    def find(self, checkpoint_id: str) -> Checkpoint | None:
        """A published checkpoint."""
        # Beside its job, which says whose it is.
        of_job = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
        return self._session.scalars(of_job.where(Checkpoint.id == checkpoint_id)).one_or_none()

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that a published checkpoint names."""
        return set(
            self._session.scalars(select(CheckpointFile.storage_key).where(CheckpointFile.storage_key.in_(keys)))
        )

    def get_file(self, checkpoint_id: str, name: str) -> CheckpointFile:
        """One file of a published checkpoint.

        Raises:
            NotFoundError: if there is no such checkpoint or file.
        """
        file = None if self.find(checkpoint_id) is None else self._session.get(CheckpointFile, (checkpoint_id, name))
        if file is None:
            raise NotFoundError(f"There is no file {name!r} in a checkpoint {checkpoint_id!r}.")
        return file
