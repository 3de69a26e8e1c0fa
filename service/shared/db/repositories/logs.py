"""Log text of jobs, kept in the database so that it outlives its worker."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from service.shared.db.models import Job, LogChunk
from service.shared.db.models.base import storable
from service.shared.db.repositories.fencing import write_fenced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

TRUNCATED = "\n[log limit reached: later lines were dropped]\n"


class LogRepository:
    def __init__(self, session: Session, max_bytes: int) -> None:
        self._session = session
        self._max_bytes = max_bytes

    def append(self, job_id: str, epoch: int, text: str) -> None:
        """Add text to the job's log; beyond the limit it is dropped, with a note in the log the first time.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        encoded = storable(text).encode()
        job = write_fenced(self._session, job_id, epoch, log_bytes=Job.log_bytes + len(encoded))
        offset = job.log_bytes - len(encoded)
        room = self._max_bytes - offset
        if not encoded or room < 0:
            return
        kept = encoded[:room].decode(errors="ignore")
        if len(encoded) > room:
            kept += TRUNCATED
        self._session.execute(insert(LogChunk).values(job_id=job_id, offset=offset, text=kept))

    def read(self, job_id: str) -> Iterator[str]:
        """The log from its start, in pieces."""
        query = select(LogChunk.text).where(LogChunk.job_id == job_id).order_by(LogChunk.offset)
        with closing(self._session.scalars(query.execution_options(yield_per=16))) as pieces:
            yield from pieces

    def tail(self, job_id: str, lines: int) -> str:
        """The last lines of the log."""
        query = select(LogChunk.text).where(LogChunk.job_id == job_id).order_by(LogChunk.offset.desc())
        pieces: list[str] = []
        newlines = 0
        with closing(self._session.scalars(query.execution_options(yield_per=16))) as chunks:
            for text in chunks:
                pieces.append(text)
                newlines += text.count("\n")
                if newlines > lines:
                    break
        return "".join("".join(reversed(pieces)).splitlines(keepends=True)[-lines:])
