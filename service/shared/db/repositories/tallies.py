"""Counting what happens, in the transaction that makes it happen."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from service.shared.db.models import Base, Tally
from service.shared.tallies import bucket_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from sqlalchemy.orm import Session

    from service.shared.tallies import TallyName

    Place: TypeAlias = tuple[TallyName, str, str]

NEW_ROWS = insert(Base.metadata.tables[Tally.__tablename__]).inline()  # nobody asks for the ids that it chooses
TOTALS = select(Tally.name, Tally.label, Tally.bucket, func.sum(Tally.number), func.sum(Tally.amount)).group_by(
    Tally.name, Tally.label, Tally.bucket
)
FOLD_FROM = 1000


@dataclass(frozen=True)
class Total:
    """A tally, or one bucket of it, over all time."""

    name: TallyName
    label: str
    bucket: str
    number: int
    amount: float


class TallyRepository:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._numbers: Counter[Place] = Counter()
        self._amounts: defaultdict[Place, float] = defaultdict(float)

    def count(self, name: TallyName, label: str = "", *, amount: float = 0.0) -> None:
        """One more of it; written by `store`."""
        self._add((name, label, ""), amount)

    def observe(self, name: TallyName, seconds: float, label: str = "") -> None:
        """One more observation of a histogram, negative ones as zero; written by `store`."""
        seconds = max(0.0, seconds)
        self._add((name, label, bucket_of(name, seconds)), seconds)

    def store(self) -> None:
        """Write what was counted; near the end of a transaction."""
        rows = [_row(place, number, self._amounts[place]) for place, number in self._numbers.items()]
        self._numbers.clear()
        self._amounts.clear()
        if rows:
            self._session.execute(NEW_ROWS, rows)

    def totals(self) -> Sequence[Total]:
        """All tallies as of now."""
        return [
            Total(name, label, bucket, int(number), float(amount))
            for name, label, bucket, number, amount in self._session.execute(TOTALS)
        ]

    def are_many(self) -> bool:
        """Whether there are so many rows that it is time to `fold` them."""
        return (self._session.scalar(select(func.count()).select_from(Tally)) or 0) >= FOLD_FROM

    def fold(self) -> None:
        """Put all rows of a tally together into one; their sums stay as they are, also for who looks meanwhile."""
        parts = delete(Tally).returning(Tally.name, Tally.label, Tally.bucket, Tally.number, Tally.amount)
        for name, label, bucket, number, amount in self._session.execute(
            parts, execution_options={"synchronize_session": False}
        ):
            self._numbers[name, label, bucket] += number
            self._amounts[name, label, bucket] += amount
        self.store()

    def _add(self, place: Place, amount: float) -> None:
        self._numbers[place] += 1
        self._amounts[place] += amount


def _row(place: Place, number: int, amount: float) -> dict[str, object]:
    name, label, bucket = place
    return {"name": name, "label": label, "bucket": bucket, "number": number, "amount": amount}
