"""Log text of jobs as clients see it."""

from typing import Literal

from service.api.schemas.lists import Read


class LogRead(Read):
    """A part of a job's log. Offsets count bytes of its UTF-8."""

    object: Literal["job.log"] = "job.log"
    job_id: str
    """The job."""
    offset: int
    """Where `data` begins."""
    data: str
    """The text; bytes that are no UTF-8 are replaced."""
    next_offset: int
    """Give it as `after` to get what follows."""
    is_complete: bool
    """Nothing follows, and nothing ever will."""


class LogPiece(Read):
    """What one event of the stream carries."""

    offset: int
    """Where `text` begins."""
    text: str
    """What was written."""
