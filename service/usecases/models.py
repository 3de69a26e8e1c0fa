"""What may be had of a trained model: other forms of it, made when they are first asked for."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from service.shared.db.models import Export
from service.shared.errors import BaseModelUnavailableError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import WorkState

if TYPE_CHECKING:
    from service.shared.db.models import Model
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork

MERGED = "merged"


def get_usable_model(unit: UnitOfWork, settings: Settings, model_id: str) -> Model:
    """The model, if this installation has the weights of its base.

    Raises:
        NotFoundError: if there is no such model.
        BaseModelUnavailableError: if the weights are missing.
    """
    model = unit.models.get(model_id)
    if model.base_model not in settings.base_models:
        raise BaseModelUnavailableError(
            f"This server has no weights for {model.base_model!r}, which model {model_id} needs for this: its operator "
            "must set SAM3_CHECKPOINT or SAM3_CHECKPOINT_FROM_HUB=true. The formats native and peft need none."
        )
    return model


def delete_model(unit: UnitOfWork, model_id: str) -> None:
    """Delete the model with its exports and predictions. Comparisons that have ended stay; others fail.

    Raises:
        NotFoundError: if there is no such model.
    """
    unit.models.delete(model_id)
    error = {
        "code": "model_deleted",
        "message": f"Model {model_id} was deleted before it was measured.",
        "hint": "Compare models that are there.",
        "retryable": False,
    }
    unit.comparisons.fail_unfinished(model_id, error)


def find_export(unit: UnitOfWork, settings: Settings, model_id: str, form: str) -> Export | None:
    """What has been made, or is being made, of the model; None where it must be requested (again).

    Raises:
        NotFoundError: if there is no such model.
        BaseModelUnavailableError: if the form needs weights that this installation lacks.
    """
    if form == MERGED:
        get_usable_model(unit, settings, model_id)
    unit.models.get(model_id)
    export = unit.exports.find(model_id, form)
    if export is not None and export.state is WorkState.FAILED and export.finished_at is not None:
        patience = timedelta(seconds=settings.retry_backoff_max_s)
        if unit.clock.now() - export.finished_at >= patience:
            return None
    return export


def request_export(unit: UnitOfWork, settings: Settings, model_id: str, form: str) -> Export:
    """The model in another form, at whatever state its making is; the first who asks has it made.

    One that failed is tried anew when it is asked for `retry_backoff_max_s` later.

    Raises:
        NotFoundError: if there is no such model.
        BaseModelUnavailableError: if the form needs weights that this installation lacks.
    """
    unit.models.get(model_id, lock=True)  # of two who ask first, one finds the other's
    found = find_export(unit, settings, model_id, form)
    if found is not None:
        return found
    failed = unit.exports.find(model_id, form)
    if failed is not None:
        unit.exports.remove(failed)
    export = unit.exports.add(Export(id=new_id("exp"), model_id=model_id, format=form))
    unit.ring_after_commit(Task.EXPORT, export.id)
    return export
