"""Questions about images: hostile ones are refused by name, the others are answered, now or later, once."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from service.shared.db.models import Prediction
from service.shared.errors import LeaseLostError
from service.shared.queue import Task
from tests.service.conftest import Api, assert_problem
from tests.service.results import add_model, image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

RESULT = [
    {"prompt": "bolt", "presence": 0.9, "detections": [{"box": [1, 2, 3, 4], "score": 0.8, "segmentation": None}]}
]


@pytest.fixture
def model_id(api: Api, tmp_path: Path) -> str:
    return add_model(api.database, api.storage, tmp_path)


def predict(
    api: Api, model_id: str, image: bytes | None = None, *, fields: list[tuple[str, str]] | None = None, **headers: str
) -> httpx.Response:
    """Ask with these form fields, by default for a bolt, and wait for nothing unless `Prefer` says so."""
    parts: list[tuple[str, Any]] = [("file", ("a.png", image_bytes() if image is None else image))]
    parts += [(name, (None, value)) for name, value in ([("prompt", "bolt")] if fields is None else fields)]
    sent = {"Prefer": "wait=0"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return api.client.post(f"/v1/models/{model_id}/predict", files=parts, headers=sent)


@contextmanager
def worker(api: Api, answer: Callable[[Prediction], None] | None = None) -> Iterator[None]:
    """Answers every prediction as soon as it is there."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            with api.database.write() as unit:
                prediction = unit.predictions.claim("w-1")
            if prediction is not None and answer is not None:
                answer(prediction)
            elif prediction is not None:
                with api.database.write() as unit:
                    unit.predictions.succeed(prediction.id, prediction.epoch, result=RESULT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_an_answer_comes_at_once(api: Api, model_id: str) -> None:
    with worker(api):
        response = predict(api, model_id, Prefer="wait=20")
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["status"], body["results"], body["prompts"]) == ("succeeded", RESULT, ["bolt"])
    assert body["image"] == {"width": 60, "height": 40, "sha256": hashlib.sha256(image_bytes()).hexdigest()}
    assert response.headers["content-location"] == body["urls"]["self"]
    assert response.headers["preference-applied"] == "wait=20"
    assert api.client.get(body["urls"]["self"]).json() == body


def test_an_answer_that_takes_long_is_asked_for_later(api: Api, model_id: str) -> None:
    response = predict(api, model_id)
    assert response.status_code == 202
    location = response.headers["location"]
    assert api.queue.rings == [(Task.PREDICT, location.rpartition("/")[2])]
    waiting = api.client.get(location)
    assert (waiting.json()["status"], waiting.headers["retry-after"]) == ("queued", "1")
    with worker(api):
        deadline = time.monotonic() + 10
        while api.client.get(location).json()["status"] != "succeeded":
            assert time.monotonic() < deadline
    assert api.client.get(location).json()["results"] == RESULT


def test_many_wait_at_once_and_each_gets_its_own_answer(api: Api, model_id: str) -> None:
    def answer(prediction: Prediction) -> None:
        prompt = prediction.request["prompts"][0]
        with api.database.write() as unit:
            result = [{"prompt": prompt, "presence": 1.0, "detections": []}]
            unit.predictions.succeed(prediction.id, prediction.epoch, result=result)

    with worker(api, answer), ThreadPoolExecutor(12) as pool:
        names = [f"thing {number}" for number in range(24)]
        answers = list(pool.map(lambda n: predict(api, model_id, fields=[("prompt", n)], Prefer="wait=30"), names))
    assert [response.status_code for response in answers] == [200] * 24
    assert [response.json()["results"][0]["prompt"] for response in answers] == names


def test_a_failure_is_a_problem_for_who_waits_and_a_state_for_who_asks_later(api: Api, model_id: str) -> None:
    error = {"code": "gpu_oom", "message": "No memory.", "hint": "Send less.", "retryable": False}

    def fail(prediction: Prediction) -> None:
        with api.database.write() as unit:
            unit.predictions.fail(prediction.id, prediction.epoch, error)

    with worker(api, fail):
        problem = assert_problem(predict(api, model_id, Prefer="wait=20"), 500, "prediction_failed")
    assert problem["detail"] == "No memory. Send less."
    later = predict(api, model_id)
    with worker(api, fail):
        while (body := api.client.get(later.headers["location"]).json())["status"] != "failed":
            time.sleep(0.01)
    assert body["error"] == error


def test_a_picture_is_drawn_only_if_it_was_asked_for(api: Api, model_id: str, tmp_path: Path) -> None:
    picture = image_bytes((6, 4))

    def draw(prediction: Prediction) -> None:
        assert prediction.request["overlay"] is True
        (tmp_path / "o.png").write_bytes(picture)
        made = api.storage.put_file(f"predictions/{prediction.id}/o.png", tmp_path / "o.png")
        overlay = {"overlay_key": made.key, "overlay_bytes": made.size_bytes, "overlay_sha256": made.sha256}
        with api.database.write() as unit:
            unit.predictions.succeed(prediction.id, prediction.epoch, result=RESULT, **overlay)

    with worker(api, draw):
        response = predict(api, model_id, Accept="image/png", Prefer="wait=20")
    assert (response.status_code, response.headers["content-type"], response.content) == (200, "image/png", picture)
    url = response.headers["content-location"]
    assert api.client.get(url).json()["results"] == RESULT
    assert api.client.get(url, headers={"Accept": "image/png"}).content == picture
    with worker(api):
        plain = predict(api, model_id, Prefer="wait=20").headers["content-location"]
    assert_problem(api.client.get(plain, headers={"Accept": "image/png"}), 406, "not_acceptable")


def test_a_key_asks_once(api: Api, model_id: str) -> None:
    first, again = (predict(api, model_id, Idempotency_Key="k-1") for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["location"] == again.headers["location"]
    assert len(api.storage.list("predictions")) == 1
    with worker(api):
        assert predict(api, model_id, Idempotency_Key="k-1", Prefer="wait=20").json()["results"] == RESULT
    other = predict(api, model_id, fields=[("prompt", "nut")], Idempotency_Key="k-1")
    assert_problem(other, 422, "idempotency_key_reused")


def truncated(image: bytes) -> bytes:
    return image[: len(image) // 2]


def bomb() -> bytes:
    """Few bytes that say they are 30,000 x 30,000 pixels."""
    png = bytearray(image_bytes((1, 1)))
    png[16:24] = (30_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


def pages() -> bytes:
    buffer = io.BytesIO()
    first, *rest = (Image.new("L", (4, 4), shade) for shade in (0, 90))
    first.save(buffer, "TIFF", save_all=True, append_images=rest)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", 415, "unsupported_media_type"),
        (b"not an image", 415, "unsupported_media_type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_media_type"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "unsupported_media_type"),
        (image_bytes(form="GIF"), 415, "unsupported_media_type"),
        (truncated(image_bytes((400, 300), "JPEG")), 422, "image_unreadable"),
        (truncated(image_bytes((400, 300))), 422, "image_unreadable"),
        (pages(), 422, "image_unreadable"),
        (bomb(), 422, "image_too_large"),
        (image_bytes((10_000, 6_000)), 422, "image_too_large"),
    ],
    ids=["empty", "text", "svg", "eps", "gif", "half-jpeg", "half-png", "pages", "bomb", "60-megapixels"],
)
def test_hostile_images_are_named_and_nothing_of_them_is_kept(
    api: Api, model_id: str, image: bytes, status: int, code: str
) -> None:
    assert_problem(predict(api, model_id, image), status, code)
    assert api.storage.list("predictions") == []
    assert list(api.settings.staging_dir.iterdir()) == []
    assert predict(api, model_id).status_code == 202


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ([("prompt", "")], "/prompt/0"),
        ([("prompt", "bolt"), ("prompt", "x" * 201)], "/prompt/1"),
        ([("prompt", "a\x00b")], "/prompt/0"),
        ([("prompt", "x")] * 17, "/prompt"),
        ([("box", "1,2,3")], "/box/0"),
        ([("box", "a,b,c,d")], "/box/0"),
        ([("box", "nan,0,5,5")], "/box/0"),
        ([("box", "0,0,inf,5")], "/box/0"),
        ([("box", "5,5,5,9")], "/box/0"),
        ([("box", "0,0,61,40")], "/box/0"),
        ([("box", "-1,0,9,9")], "/box/0"),
        ([("min_score", "2")], "/min_score"),
        ([("untuned", "yes")], "/untuned"),
        ([("untuned", "true"), ("untuned", "true")], "/untuned"),
        ([("min_score", "nan")], "/min_score"),
        ([("min_score", "high")], "/min_score"),
        ([("min_score", "0.1"), ("min_score", "0.2")], "/min_score"),
        ([("threshold", "0.5")], "/threshold"),
    ],
)
def test_every_field_is_checked(api: Api, model_id: str, fields: list[tuple[str, str]], pointer: str) -> None:
    problem = assert_problem(predict(api, model_id, fields=fields), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == pointer
    assert api.storage.list("predictions") == []


def test_what_is_asked_reaches_the_worker(api: Api, model_id: str) -> None:
    fields = [("prompt", "  a   bolt "), ("prompt", "nut"), ("box", "1,2,30,40"), ("box", "0, 0, 60, 40")]
    upright = image_bytes(form="JPEG", exif=_turned())
    predict(api, model_id, upright, fields=[*fields[:2], ("box", "0,0,40,60"), ("min_score", "0.25")])
    predict(api, model_id, fields=fields)
    predict(api, model_id, fields=[])
    with api.database.write() as unit:
        turned, plain, bare = (unit.predictions.claim("w-1") for _ in range(3))
    assert turned is not None
    assert plain is not None
    assert bare is not None
    assert (turned.width, turned.height) == (40, 60)  # as the EXIF orientation shows it
    assert turned.request["min_score"] == 0.25
    boxes = [[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 60.0, 40.0]]
    assert plain.request == {
        "prompts": ["a bolt", "nut"],
        "boxes": boxes,
        "min_score": 0.5,
        "overlay": False,
        "untuned": False,
    }
    assert (bare.request["prompts"], bare.request["boxes"]) == ([], [])


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def test_other_bodies_and_missing_models_are_refused(api: Api, model_id: str, tmp_path: Path) -> None:
    url = f"/v1/models/{model_id}/predict"
    assert_problem(api.client.post(url, json={"prompt": "bolt"}), 415, "unsupported_media_type")
    assert_problem(api.client.post(url, files=[("prompt", (None, "bolt"))]), 422, "invalid_request")
    large = b"x" * (api.settings.max_image_bytes + 1)
    assert_problem(predict(api, model_id, large), 413, "payload_too_large")
    assert_problem(predict(api, "model_none"), 404, "not_found")
    other = add_model(api.database, api.storage, tmp_path, base_model="sam3")
    assert_problem(predict(api, other), 422, "base_model_unavailable")
    assert_problem(api.client.get("/v1/predictions/pred_none"), 404, "not_found")
    assert api.storage.list("predictions") == []


def test_a_full_queue_says_so_before_it_stores_anything(
    api: Api, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(api.settings.__dict__, "max_waiting_predictions", 2)
    for _ in range(2):
        assert predict(api, model_id).status_code == 202
    refused = predict(api, model_id)
    assert_problem(refused, 429, "queue_full")
    assert refused.headers["retry-after"]
    assert len(api.storage.list("predictions")) == 2


def test_a_model_deleted_meanwhile_takes_its_predictions_along(api: Api, model_id: str) -> None:
    location = predict(api, model_id).headers["location"]
    with api.database.write() as unit:
        prediction = unit.predictions.claim("w-1")
    assert prediction is not None
    api.client.delete(f"/v1/models/{model_id}")
    assert_problem(api.client.get(location), 404, "not_found")
    with pytest.raises(LeaseLostError), api.database.write() as unit:
        unit.predictions.succeed(prediction.id, prediction.epoch, result=RESULT)
