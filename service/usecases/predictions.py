"""What may be asked of a model, and how it becomes work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from service.shared.db.models import Prediction
from service.shared.errors import QueueFullError
from service.shared.queue import Task
from service.usecases.models import get_usable_model

if TYPE_CHECKING:
    from service.shared.db.models import Model
    from service.shared.settings import Settings
    from service.shared.storage import StoredFile
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class Question:
    """What to find: the prompts, or what looks like the boxes, or both; without either all the model was tuned on."""

    prompts: list[str]
    boxes: list[list[float]]
    """Examples as [x1, y1, x2, y2] in pixels of the upright image."""
    min_score: float
    overlay: bool
    """Also draw what is found on the image."""
    untuned: bool = False
    """Ask the model's base alone."""


def image_key(prediction_id: str) -> str:
    """Where a prediction's image lies in storage."""
    return f"predictions/{prediction_id}/image"


def check_can_ask(unit: UnitOfWork, settings: Settings, model_id: str) -> Model:
    """The model, if a question to it would be taken.

    Raises:
        NotFoundError: if there is no such model.
        BaseModelUnavailableError: if this installation lacks the weights of its base.
        QueueFullError: if too many predictions wait already.
    """
    model = get_usable_model(unit, settings, model_id)
    if unit.predictions.count_waiting() >= settings.max_waiting_predictions:
        raise QueueFullError(
            f"{settings.max_waiting_predictions} predictions already wait for a worker: ask again later."
        )
    return model


def ask(
    unit: UnitOfWork,
    settings: Settings,
    prediction_id: str,
    model_id: str,
    question: Question,
    *,
    image: StoredFile,
    size: tuple[int, int],
) -> Prediction:
    """A new prediction whose image, of (width, height) pixels, is complete in storage.

    Raises:
        as `check_can_ask`.
    """
    model = check_can_ask(unit, settings, model_id)
    prediction = Prediction(
        id=prediction_id,
        project=model.project,
        model_id=model_id,
        image_key=image.key,
        image_sha256=image.sha256,
        width=size[0],
        height=size[1],
        request=asdict(question),
    )
    unit.predictions.add(prediction)
    unit.ring_after_commit(Task.PREDICT, prediction.id)
    return prediction
