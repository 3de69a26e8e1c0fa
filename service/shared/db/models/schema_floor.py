"""Which versions the schema still serves."""

from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, StorableName


class SchemaFloor(Base):
    """The one row: revision of the oldest version that works with this schema. Only migrations write it."""

    __tablename__ = "schema_floor"

    revision: Mapped[str] = mapped_column(StorableName(32), primary_key=True)
