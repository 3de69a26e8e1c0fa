"""Predictions as clients see them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.api.schemas.lists import Read
from service.shared.db.models import Prediction
from service.shared.states import WorkState


class MaskRle(Read):
    """A mask as COCO's compressed run-length encoding."""

    size: list[int] = Field(examples=[[480, 640]])
    """Height and width in pixels."""
    counts: str
    """Run lengths, compressed as pycocotools does."""


class Detection(Read):
    box: list[float] = Field(examples=[[12.5, 30.0, 210.0, 188.5]])
    """x1, y1, x2, y2 in pixels of the upright image."""
    score: float
    """From 0 to 1."""
    segmentation: MaskRle | None
    """Its mask."""


class Answer(Read):
    prompt: str
    """`visual` where boxes were asked alone."""
    presence: float
    """Probability that the image shows it at all."""
    detections: list[Detection]
    """Best first, at most 100."""


class ImageRead(Read):
    width: int
    """Pixels."""
    height: int
    """Pixels, after the EXIF orientation."""
    sha256: str
    """Hash of the file that was sent."""


class PredictionError(Read):
    code: str
    """Stable name, for programs."""
    message: str
    """What went wrong."""
    hint: str
    """What to do about it."""
    retryable: bool
    """Whether the same question may succeed later."""


class PredictionUrls(Read):
    self: str
    """Where the answer can be asked for until it is forgotten."""
    model: str
    """The model."""


class PredictionRead(Read):
    """A question to a model about one image, and the answer to each prompt."""

    id: str
    """Opaque."""
    object: Literal["prediction"] = "prediction"
    """Always `prediction`."""
    model_id: str
    """The model that was asked."""
    status: WorkState
    """queued, running, succeeded or failed."""
    image: ImageRead
    """The image that was sent."""
    prompts: list[str]
    """As asked; empty: the boxes alone, or all that the model was tuned on."""
    boxes: list[list[float]]
    """As asked: x1, y1, x2, y2 in pixels."""
    min_score: float
    """Detections below were left out."""
    untuned: bool
    """Whether the model's base was asked instead."""
    results: list[Answer] | None
    """One for each prompt; null until it has succeeded."""
    error: PredictionError | None
    """Why it failed."""
    created_at: datetime
    """When it was asked."""
    finished_at: datetime | None
    """When it was answered or failed."""
    urls: PredictionUrls
    """Where to go on."""


def prediction_read(prediction: Prediction) -> PredictionRead:
    asked: dict[str, Any] = prediction.request
    return PredictionRead(
        id=prediction.id,
        model_id=prediction.model_id,
        status=prediction.state,
        image=ImageRead(width=prediction.width, height=prediction.height, sha256=prediction.image_sha256),
        prompts=asked["prompts"],
        boxes=asked["boxes"],
        min_score=asked["min_score"],
        untuned=asked.get("untuned", False),
        results=None if prediction.result is None else [Answer(**answer) for answer in prediction.result],
        error=None if prediction.error is None else PredictionError(**prediction.error),
        created_at=prediction.created_at,
        finished_at=prediction.finished_at,
        urls=PredictionUrls(self=f"/v1/predictions/{prediction.id}", model=f"/v1/models/{prediction.model_id}"),
    )
