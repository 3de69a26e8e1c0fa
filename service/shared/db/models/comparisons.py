"""Comparisons of two models on one dataset, and the files about them."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.db.models.jobs import Name
from service.shared.db.models.work import Work


class ComparisonFile(Base):
    """`report.html`, or a file of one of the models: `0/truth.json`."""

    __tablename__ = "comparison_files"

    comparison_id: Mapped[str] = mapped_column(Id, ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(StorableName(64))
    storage_key: Mapped[str] = mapped_column(StorableName(300), index=True)


class Comparison(OfProject, Work, Base):
    """It outlives its models and its dataset: what it needs to tell of them it keeps itself."""

    __tablename__ = "comparisons"
    __table_args__ = (
        Index(None, "state", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "project", "created_at", "id"),
        Index(None, "dataset_id"),
        Index(None, "first_model"),
        Index(None, "second_model"),
    )

    name: Mapped[str] = mapped_column(Name)
    dataset_id: Mapped[str] = mapped_column(Id, ForeignKey("datasets.id"))
    first_model: Mapped[str] = mapped_column(Name)
    """Id of a model, or name of a base: the measure."""
    second_model: Mapped[str] = mapped_column(Name)
    """The one that is judged by it."""
    models: Mapped[list[Any]]
    """`{model, name, base_model}` of both, in this order."""
    split: Mapped[str | None] = mapped_column(Name)
    """train | validation; None: validation if the dataset has it."""
    max_images: Mapped[int | None]
    metric: Mapped[str] = mapped_column(Name)
    images_done: Mapped[int | None] = mapped_column(BigInteger)
    """Of both models together, in this attempt."""
    images_total: Mapped[int | None] = mapped_column(BigInteger)
    result: Mapped[dict[str, Any] | None]
    """`{split, evaluations}`: the split that was measured on, and what `evaluation.json` says of each model."""
    files: Mapped[list[ComparisonFile]] = relationship(
        lazy="selectin", order_by="ComparisonFile.name", passive_deletes=True
    )
