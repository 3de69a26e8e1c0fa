"""Predictions: work that is forgotten some time after it was asked for."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, or_, select

from service.shared.db.models import Prediction
from service.shared.db.repositories.work import WorkRepository
from service.shared.errors import NotFoundError
from service.shared.states import WorkState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

ENDED = (WorkState.SUCCEEDED, WorkState.FAILED)


class PredictionRepository(WorkRepository[Prediction]):
    def get(self, prediction_id: str) -> Prediction:
        """The prediction.

        Raises:
            NotFoundError: if there is none, or it was forgotten.
        """
        prediction = self._session.get(Prediction, prediction_id)
        if prediction is None:
            raise NotFoundError(f"There is no prediction {prediction_id!r}; they are kept for a short time only.")
        return prediction

    def unfinished(self, prediction_ids: Collection[str]) -> set[str]:
        """Those of the predictions that are still to be answered."""
        query = select(Prediction.id).where(Prediction.id.in_(prediction_ids), Prediction.state.not_in(ENDED))
        return set(self._session.scalars(query))

    def forget(self, older_than_s: float) -> Sequence[str]:
        """Delete predictions asked for longer ago; the storage keys to delete once the transaction has committed."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        gone = delete(Prediction).where(Prediction.created_at < since)
        rows = self._session.execute(gone.returning(Prediction.image_key, Prediction.overlay_key))
        return [key for row in rows for key in row if key is not None]

    def known_keys(self, keys: Sequence[str]) -> set[str | None]:
        """Those of the storage keys that a prediction names."""
        named = select(Prediction.image_key, Prediction.overlay_key)
        rows = self._session.execute(named.where(or_(Prediction.image_key.in_(keys), Prediction.overlay_key.in_(keys))))
        return {key for row in rows for key in row}
