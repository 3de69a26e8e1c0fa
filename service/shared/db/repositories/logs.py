"""Log text of jobs, kept in the database so that it outlives its worker. Offsets count bytes of UTF-8."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from service.shared.db.models import Job, LogChunk
from service.shared.db.models.base import storable
from service.shared.db.repositories.fencing import write_fenced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

TRUNCATED = "\n[log limit reached: later lines were dropped]\n"


class LogRepository:
    def __init__(self, session: Session, max_bytes: int) -> None:
        self._session = session
        self._max_bytes = max_bytes

    def append(self, job_id: str, epoch: int, text: str) -> int:
        """Add text to the job's log; beyond the limit it is dropped, with a note in the log the first time.

        Returns the bytes that the log has then.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        encoded = storable(text).encode()
        job = write_fenced(self._session, job_id, epoch, log_bytes=Job.log_bytes + len(encoded))
        offset = job.log_bytes - len(encoded)
        kept = self._kept(encoded, self._max_bytes - offset)
        if len(kept) != len(encoded):
            write_fenced(self._session, job_id, epoch, log_bytes=offset + len(kept))
        if kept:
            self._session.execute(insert(LogChunk).values(job_id=job_id, offset=offset, text=kept.decode()))
        return offset + len(kept)

    def size(self, job_id: str) -> int:
        """Bytes of the log."""
        end = LogChunk.offset + func.octet_length(LogChunk.text)
        query = select(end).where(LogChunk.job_id == job_id).order_by(LogChunk.offset.desc()).limit(1)
        return self._session.scalar(query) or 0

    def read(self, job_id: str, start: int = 0, end: int | None = None) -> bytes:
        """The log from byte `start` up to, without, `end`."""
        room = None if end is None else end - start
        return b"".join(data for _, data in self.chunks(job_id, start, max_bytes=room))[:room]

    def chunks(self, job_id: str, start: int = 0, *, max_bytes: int | None = None) -> Sequence[tuple[int, bytes]]:
        """Offset and content of the pieces in which the log was written, the first one from `start` on.

        They end with the piece that reaches `max_bytes`, and so never within a character.
        """
        holding_start = select(func.max(LogChunk.offset)).where(LogChunk.job_id == job_id, LogChunk.offset <= start)
        query = select(LogChunk.offset, LogChunk.text).where(
            LogChunk.job_id == job_id, LogChunk.offset >= func.coalesce(holding_start.scalar_subquery(), 0)
        )
        found: list[tuple[int, bytes]] = []
        size = 0
        with closing(self._session.execute(query.order_by(LogChunk.offset).execution_options(yield_per=16))) as rows:
            for offset, text in rows:
                data = text.encode()[max(0, start - offset) :]
                if data:
                    found.append((max(start, offset), data))
                    size += len(data)
                if max_bytes is not None and size >= max_bytes:
                    break
        return found

    def tail_offset(self, job_id: str, lines: int) -> int:
        """Where the last so many lines of the log begin; 0 if it has no more."""
        query = select(LogChunk.offset, LogChunk.text).where(LogChunk.job_id == job_id).order_by(LogChunk.offset.desc())
        ends = 0
        with closing(self._session.execute(query.execution_options(yield_per=16))) as rows:
            for number, (offset, text) in enumerate(rows):
                data = text.encode()
                # A newline at the very end ends the last line and begins none.
                end = len(data) - 1 if number == 0 and data.endswith(b"\n") else len(data)
                while (end := data.rfind(b"\n", 0, end)) >= 0:
                    ends += 1
                    if ends == lines:
                        return int(offset) + end + 1
        return 0

    @staticmethod
    def _kept(encoded: bytes, room: int) -> bytes:
        """What of the text is stored: all of it, what fits with the note that the rest is missing, or nothing."""
        if len(encoded) <= room or not encoded:
            return encoded
        return encoded[:room].decode(errors="ignore").encode() + TRUNCATED.encode() if room >= 0 else b""
