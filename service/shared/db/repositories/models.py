"""Trained models and their exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from service.shared.db.models import Checkpoint, Export, Job, Model, ModelFile
from service.shared.db.repositories.paging import page
from service.shared.db.repositories.work import WorkRepository
from service.shared.errors import NotFoundError
from service.shared.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class ModelRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def add_best(self, job: Job) -> Model | None:
        """A model of the job's best checkpoint, named in the job's result; None if it has no best checkpoint."""
        checkpoint_id = (job.best or {}).get("checkpoint_id")
        checkpoint = None if checkpoint_id is None else self._session.get(Checkpoint, checkpoint_id)
        if checkpoint is None:
            return None
        model = Model(
            id=new_id("model"),
            job_id=job.id,
            project=job.project,
            name=job.name,
            base_model=job.base_model,
            epoch=checkpoint.epoch,
            step=checkpoint.step,
            metric=checkpoint.metric,
            value=checkpoint.value,
            archive_sha256=checkpoint.archive_sha256,
            created_at=self._clock.now(),
            files=[
                ModelFile(
                    name=file.name,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    crc32=file.crc32,
                    storage_key=file.storage_key,
                )
                for file in checkpoint.files
            ],
        )
        self._session.add(model)
        job.result = {**(job.result or {}), "model_id": model.id}
        self._session.flush()
        return model

    def get(self, model_id: str, *, lock: bool = False) -> Model:
        """The model; with `lock`, nobody else changes or deletes it until the transaction ends.

        Raises:
            NotFoundError: if there is none.
        """
        query = select(Model).where(Model.id == model_id)
        model = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        if model is None:
            raise NotFoundError(f"There is no model {model_id!r}.")
        return model

    def list(
        self,
        *,
        limit: int,
        descending: bool = True,
        after: str | None = None,
        before: str | None = None,
        base_model: str | None = None,
        job_id: str | None = None,
    ) -> tuple[Sequence[Model], bool]:
        """One page in order of creation, and whether more follow; `before` gives the page that ends there.

        Raises:
            NotFoundError: if `after` or `before` names no model.
        """
        query = select(Model)
        if base_model is not None:
            query = query.where(Model.base_model == base_model)
        if job_id is not None:
            query = query.where(Model.job_id == job_id)
        return page(
            self._session,
            query,
            Model,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def delete(self, model_id: str) -> None:
        """Delete the model with its exports and predictions; what storage holds of them is swept later.

        Raises:
            NotFoundError: if there is none.
        """
        if self._session.scalar(delete(Model).where(Model.id == model_id).returning(Model.id)) is None:
            raise NotFoundError(f"There is no model {model_id!r}.")

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that a model names."""
        return set(self._session.scalars(select(ModelFile.storage_key).where(ModelFile.storage_key.in_(keys))))


class ExportRepository(WorkRepository[Export]):
    def find(self, model_id: str, form: str) -> Export | None:
        """The export of a model in a format, if it was ever asked for."""
        return self._session.scalars(
            select(Export).where(Export.model_id == model_id, Export.format == form)
        ).one_or_none()

    def remove(self, export: Export) -> None:
        """Forget an export, so that it is made anew when it is asked for again."""
        self._session.delete(export)
        self._session.flush()

    def known_keys(self, keys: Sequence[str]) -> set[str | None]:
        """Those of the storage keys that an export names."""
        return set(self._session.scalars(select(Export.storage_key).where(Export.storage_key.in_(keys))))
