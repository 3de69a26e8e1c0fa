"""Ask a model about an image, and ask again for an answer that took long."""

from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from service.api.conditional import Conditions
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services
from service.api.downloads import SENT, send, stored
from service.api.errors import problem_responses
from service.api.forms import MAX_REPEATED, FormFile, receive_form
from service.api.images import checked_image_size
from service.api.response_headers import headers
from service.api.routes.models import ModelId
from service.api.schemas.predictions import PredictionRead, prediction_read
from service.api.waiting import requested_wait
from service.shared.db.models import Prediction
from service.shared.errors import NotAcceptableError, PredictionFailedError, invalid
from service.shared.ids import new_id
from service.shared.states import WorkState
from service.shared.storage import Storage, StoredFile
from service.usecases.idempotency import Answer, answer_once, fingerprint
from service.usecases.predictions import Question, ask, check_can_ask, image_key

router = APIRouter(tags=["models"])

PredictionId = Annotated[
    str, Path(max_length=64, description="The prediction.", examples=["pred_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
Accept = Annotated[
    str,
    Header(
        max_length=1000,
        description="`image/png`: a picture with what was found drawn on it, instead of JSON.",
        examples=["image/png"],
    ),
]
Prefer = Annotated[
    str | None,
    Header(max_length=200, description="`wait=N`: wait at most so many seconds for the answer.", examples=["wait=5"]),
]
FIELDS, REPEATABLE = frozenset({"min_score", "untuned"}), frozenset({"prompt", "box"})
MAX_PROMPT_LENGTH = 200
DEFAULT_MIN_SCORE = 0.5
POLL_AFTER_S = 1
PNG = "image/png"
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP or TIFF."},
                    "prompt": {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_LENGTH},
                        "maxItems": MAX_REPEATED,
                        "description": "What to find, one part each. Without prompt and box: all that the model was "
                        "tuned on.",
                        "example": ["pallet"],
                    },
                    "box": {
                        "type": "array",
                        "items": {"type": "string"},
                        "maxItems": MAX_REPEATED,
                        "description": "An example of it in this image as `x1,y1,x2,y2` in pixels, one part each.",
                        "example": ["12,30,210,188"],
                    },
                    "untuned": {
                        "type": "boolean",
                        "default": False,
                        "description": "Ask the base that the model was tuned from instead, to compare the two.",
                    },
                    "min_score": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "default": DEFAULT_MIN_SCORE,
                        "description": "Detections below are left out.",
                    },
                },
            }
        }
    },
}


def _answers(*further: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of an answer that may be a picture, which is sent as a download, with `further` headers."""
    content = {PNG: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"model": PredictionRead, "content": content, "headers": headers(*SENT, *further)}}


# Decoding takes a processor and the memory of the pixels: a crowd of large images waits in line.
DECODERS = CapacityLimiter(2)


@router.post(
    "/models/{model_id}/predict",
    responses={
        **_answers("Content-Location", "Vary", "Preference-Applied", "Idempotent-Replayed"),
        202: {
            "model": PredictionRead,
            "description": "Not answered yet: ask at `Location`",
            "headers": headers("Location", "Retry-After", "Vary", "Preference-Applied", "Idempotent-Replayed"),
        },
        **problem_responses(400, 404, 408, 413, 415, 422, 429, 500, 503, 507),
    },
    openapi_extra={"requestBody": FORM},
)
async def predict(
    request: Request,
    found: AppServices,
    model_id: ModelId,
    accept: Accept = "*/*",
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Find things in an image: masks (COCO RLE), boxes and scores, or a picture of them (`Accept: image/png`).

    The answer comes at once if it takes no longer than `Prefer: wait`, else 202 says where to ask for it.
    """
    await to_thread.run_sync(_check_can_ask, found, model_id)
    async with receive_form(
        request,
        found.settings.staging_dir,
        known_fields=FIELDS,
        repeatable=REPEATABLE,
        max_bytes=found.settings.max_image_bytes,
        idle_timeout_s=found.settings.upload_idle_timeout_s,
    ) as upload:
        size = await to_thread.run_sync(
            checked_image_size, upload.path, found.settings.max_image_pixels, limiter=DECODERS
        )
        question = _question(upload, size, overlay=_wants_png(accept))
        answer = await to_thread.run_sync(_store, found, model_id, upload, size, question, idempotency_key)
    prediction_id = answer.body["id"]
    asked_s = requested_wait(prefer, found.settings.predict_wait_s)
    waited_s = found.settings.predict_wait_s if asked_s is None else asked_s
    await found.predictions.ended(prediction_id, waited_s)
    prediction = await to_thread.run_sync(_read, found, prediction_id)
    response = await to_thread.run_sync(_answered, request, found.storage, prediction)
    response.headers["Vary"] = "Accept, Prefer"
    if prefer is not None:
        response.headers["Preference-Applied"] = f"wait={waited_s:g}"
    if answer.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@router.get(
    "/predictions/{prediction_id}",
    responses={**_answers("Retry-After"), **problem_responses(404, 406, 503)},
    tags=["models"],
)
def get_prediction(
    request: Request, unit: ReadUnit, found: AppServices, prediction_id: PredictionId, accept: Accept = "*/*"
) -> Response:
    """One prediction: its state, and its answer once there is one. It is forgotten after a while."""
    prediction = unit.predictions.get(prediction_id)
    if not _wants_png(accept):
        wait = {} if prediction.finished_at else {"Retry-After": str(POLL_AFTER_S)}
        return JSONResponse(prediction_read(prediction).model_dump(mode="json"), headers=wait)
    if prediction.overlay_key is None:
        raise NotAcceptableError("There is no picture: it is drawn if the prediction is asked for as image/png.")
    return _picture(request, found.storage, prediction)


def _wants_png(accept: str) -> bool:
    media_types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return PNG in media_types and "application/json" not in media_types


def _check_can_ask(found: Services, model_id: str) -> None:
    with found.database.read() as unit:
        check_can_ask(unit, found.settings, model_id)


def _read(found: Services, prediction_id: str) -> Prediction:
    with found.database.read() as unit:
        return unit.predictions.get(prediction_id)


def _store(
    found: Services,
    model_id: str,
    upload: FormFile,
    size: tuple[int, int],
    question: Question,
    idempotency_key: str | None,
) -> Answer:
    prediction_id = new_id("pred")
    # Before the transaction: a large file must not hold up other writers.
    image = found.storage.put_file(image_key(prediction_id), upload.path)
    stored_for_good = False
    try:
        with found.database.write() as unit:

            def create() -> Answer:
                nonlocal stored_for_good
                prediction = ask(unit, found.settings, prediction_id, model_id, question, image=image, size=size)
                stored_for_good = True  # from here on, also if the commit's answer is lost: the sweep finds orphans
                read = prediction_read(prediction)
                return Answer(read.urls.self, read.model_dump(mode="json"))

            asked = {"model": model_id, "file": upload.sha256, **upload.fields, **upload.repeated}
            request_sha256 = fingerprint({**asked, "overlay": question.overlay})
            answer = answer_once(unit, "predictions.create", idempotency_key, request_sha256, create)
    finally:
        if not stored_for_good:
            found.storage.delete(image.key)
    return answer


def _answered(request: Request, storage: Storage, prediction: Prediction) -> Response:
    url = f"/v1/predictions/{prediction.id}"
    if prediction.state is WorkState.FAILED:
        reason = prediction.error or {}
        raise PredictionFailedError(f"{reason.get('message')} {reason.get('hint')}".strip())
    if prediction.state is WorkState.SUCCEEDED and prediction.overlay_key is not None:
        response = _picture(request, storage, prediction)
        response.headers["Content-Location"] = url
        return response
    body = prediction_read(prediction).model_dump(mode="json")
    if prediction.state is WorkState.SUCCEEDED:
        return JSONResponse(body, headers={"Content-Location": url})
    return JSONResponse(body, 202, {"Location": url, "Retry-After": str(POLL_AFTER_S)})


def _picture(request: Request, storage: Storage, prediction: Prediction) -> Response:
    file = StoredFile(prediction.overlay_key or "", prediction.overlay_bytes or 0, prediction.overlay_sha256 or "")
    download = stored(
        storage,
        file,
        filename=f"{prediction.id}.png",
        media_type=PNG,
        created_at=prediction.finished_at or prediction.created_at,
        inline=True,
    )
    return send(request, Conditions(), download)


def _question(upload: FormFile, size: tuple[int, int], *, overlay: bool) -> Question:
    prompts = [_prompt(text, index) for index, text in enumerate(upload.repeated["prompt"])]
    boxes = [_box(text, index, size) for index, text in enumerate(upload.repeated["box"])]
    min_score = upload.fields.get("min_score", str(DEFAULT_MIN_SCORE))
    try:
        score = float(min_score)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise invalid("/min_score", "invalid_score", "must be a number from 0 to 1")
    untuned = upload.fields.get("untuned", "false")
    if untuned not in ("true", "false"):
        raise invalid("/untuned", "invalid_boolean", "must be true or false")
    return Question(prompts, boxes, score, overlay, untuned == "true")


def _prompt(text: str, index: int) -> str:
    prompt = " ".join(text.split())
    if not 1 <= len(prompt) <= MAX_PROMPT_LENGTH:
        raise invalid(f"/prompt/{index}", "invalid_prompt", f"must have 1 to {MAX_PROMPT_LENGTH} characters")
    return prompt


def _box(text: str, index: int, size: tuple[int, int]) -> list[float]:
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise invalid(f"/box/{index}", "invalid_box", "must be four numbers: x1,y1,x2,y2") from None
    width, height = size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):  # also for NaN
        raise invalid(f"/box/{index}", "invalid_box", f"must lie in the image of {width} x {height} pixels")
    return [x1, y1, x2, y2]
