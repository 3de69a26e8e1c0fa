"""Reading a log without holding it: it may be long, and its reader slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.unit_of_work import Database

PIECE_BYTES = 2**20


def read_pieces(database: Database, job_id: str, start: int, end: int) -> Iterator[bytes]:
    """The log's bytes from `start` up to, without, `end`; between two pieces no connection is held.

    Ends early if the job is deleted meanwhile.
    """
    while start < end:
        with database.read() as unit:
            piece = unit.logs.read(job_id, start, min(end, start + PIECE_BYTES))
        if not piece:
            return
        yield piece
        start += len(piece)
