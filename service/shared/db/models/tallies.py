"""What has happened, counted: it stays when the rows of jobs are deleted."""

from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, StorableName
from service.shared.db.models.jobs import stored_enum
from service.shared.tallies import TallyName


class Tally(Base):
    """A part of a count, which is the sum of all its rows. Rows are added and put together, never changed: nobody waits
    for another to count.
    """

    __tablename__ = "tallies"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    name: Mapped[TallyName] = mapped_column(stored_enum(TallyName))
    label: Mapped[str] = mapped_column(StorableName(64))
    bucket: Mapped[str] = mapped_column(StorableName(16))
    """Upper bound of the observations counted here; "" where the tally is no histogram."""
    number: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[float]
    """Sum of what was observed."""
