"""The guarded write under every door a worker uses: it succeeds only for the present holder of the lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Update, update

from service.shared.db.models import Job
from service.shared.errors import LeaseLostError
from service.shared.states import LEASED

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def fenced(job_id: str, epoch: int) -> Update:
    """An UPDATE of the job that matches only while `epoch` holds it."""
    return update(Job).where(Job.id == job_id, Job.epoch == epoch, Job.state.in_(LEASED))


def write_fenced(session: Session, job_id: str, epoch: int, **values: Any) -> Job:
    """Apply `values` to the job and lock its row until the end of the transaction.

    Raises:
        LeaseLostError: if `epoch` no longer holds the job.
    """
    job = returning_job(session, fenced(job_id, epoch).values(**values))
    if job is None:
        raise LeaseLostError(f"lease {epoch} of {job_id} is no longer held")
    return job


def returning_job(session: Session, statement: Update) -> Job | None:
    """Run an UPDATE of at most one job; the job as it is afterwards, or None if no row matched."""
    return session.scalars(
        statement.returning(Job), execution_options={"synchronize_session": False, "populate_existing": True}
    ).one_or_none()
