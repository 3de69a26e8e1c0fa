"""Which models may be compared on which dataset, and how that becomes work."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from sam3_lora.config import BaseName
from service.shared.db.models import Comparison
from service.shared.errors import (
    DatasetNotReadyError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    fault,
)
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import DatasetState
from service.usecases.jobs import require_weights, usable_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork

MAX_NAME = 200


@dataclass(frozen=True)
class ComparisonSpec:
    """A comparison as a client asks for it."""

    dataset_id: str
    models: Sequence[str]
    """Two different ids of models or names of bases: the measure, and the one that is judged by it."""
    name: str | None
    split: str | None
    max_images: int | None
    metric: str


def create_comparison(unit: UnitOfWork, settings: Settings, spec: ComparisonSpec) -> Comparison:
    """A new comparison, queued.

    Raises:
        InvalidRequestError: if the dataset or a model is not there.
        DatasetInvalidError: if the dataset did not pass its check.
        DatasetNotReadyError: if it is still being checked.
        BaseModelUnavailableError: if this installation lacks the weights of a base.
        QueueFullError: if too many wait already.
    """
    if unit.comparisons.count_waiting() >= settings.max_waiting_comparisons:
        raise QueueFullError(
            f"{settings.max_waiting_comparisons} comparisons already wait for a worker: wait until some have ended."
        )
    dataset = usable_dataset(unit.datasets.lock_shared([spec.dataset_id]), spec.dataset_id, "/dataset_id")
    if dataset.state is DatasetState.PROCESSING:
        raise DatasetNotReadyError(f"Dataset {dataset.id} is still being checked: wait for its end, then ask again.")
    # Locked in one order by everybody, so that nobody waits for each other.
    found = {model: _usable(unit, settings, model, spec.models.index(model)) for model in sorted(spec.models)}
    first, second = (found[model] for model in spec.models)
    if first["name"] == second["name"]:
        for entry in (first, second):
            entry["name"] += f" ({entry['model']})"
    comparison = Comparison(
        project=dataset.project,
        id=new_id("cmp"),
        name=spec.name or f"{second['name']} against {first['name']}"[:MAX_NAME],
        dataset_id=dataset.id,
        first_model=first["model"],
        second_model=second["model"],
        models=[first, second],
        split=spec.split,
        max_images=spec.max_images,
        metric=spec.metric,
    )
    unit.comparisons.add(comparison)
    unit.ring_after_commit(Task.COMPARE, comparison.id)
    return comparison


def delete_comparison(database: Database, storage: Storage, comparison_id: str) -> None:
    """Delete a comparison with its files; a worker that is at it stops.

    Raises:
        NotFoundError: if there is none.
    """
    with database.write() as unit:
        comparison = unit.comparisons.get(comparison_id, lock=True)
        keys = [file.storage_key for file in comparison.files]
        unit.comparisons.remove(comparison_id)
    with contextlib.suppress(ServiceError):  # what storage does not delete now is swept later
        storage.delete_all(keys)


def _usable(unit: UnitOfWork, settings: Settings, model: str, position: int) -> dict[str, Any]:
    """What a comparison keeps of a model, which is locked so that it is not deleted meanwhile."""
    pointer = f"/models/{position}"
    if model in get_args(BaseName):
        entry = {"model": model, "name": f"{model} (untuned)", "base_model": model}
    else:
        try:
            row = unit.models.get(model, lock=True)
        except NotFoundError as error:
            message = f"{error.message} A base is called {' or '.join(get_args(BaseName))}."
            raise InvalidRequestError(message, errors=[fault(pointer, "model_not_found", "no such model")]) from None
        entry = {"model": row.id, "name": row.name, "base_model": row.base_model}
    require_weights(settings, entry["base_model"], pointer)
    return entry
