"""Comparisons: what is refused, what is answered, and what becomes of them when something they need is deleted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from service.reconciler import Reconciler
from service.shared.errors import DatasetInUseError, LeaseLostError, NotFoundError, QueueFullError, ServiceError
from service.shared.queue import Task
from service.shared.states import DatasetState, WorkState
from service.shared.storage import Storage
from service.usecases.comparisons import ComparisonSpec, create_comparison, delete_comparison
from service.usecases.datasets import delete_dataset
from service.usecases.models import delete_model
from tests.service.conftest import Api, FakeClock, FakeQueue, add_dataset, assert_problem
from tests.service.results import add_comparison, add_model, finish_comparison

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

BASE = "sam3-tiny"


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture
def model_id(api: Api, tmp_path: Path) -> str:
    return add_model(api.database, api.storage, tmp_path)


def asked(api: Api, model_id: str, **values: Any) -> dict[str, Any]:
    body = {"models": [BASE, model_id]} | values
    return body if "dataset_id" in body else body | {"dataset_id": add_dataset(api.database)}


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"models": []}, "/models"),
        ({"models": [BASE]}, "/models"),
        ({"models": [BASE, "sam3", "model_x"]}, "/models"),
        ({"models": [BASE, BASE]}, ""),
        ({"models": ["sam3-tiny", 3]}, "/models/1"),
        ({"models": [BASE, ""]}, "/models/1"),
        ({"models": [BASE, {"id": "model_x"}]}, "/models/1"),
        ({"models": "sam3-tiny"}, "/models"),
        ({"models": [BASE, "model_none"]}, "/models/1"),
        ({"models": ["sam3-large", BASE]}, "/models/0"),
        ({"models": ["x" * 65, BASE]}, "/models/0"),
        ({"dataset_id": "ds_none"}, "/dataset_id"),
        ({"dataset_id": None}, "/dataset_id"),
        ({"split": "test"}, "/split"),
        ({"max_images": 0}, "/max_images"),
        ({"max_images": True}, "/max_images"),
        ({"max_images": 2**63}, "/max_images"),
        ({"metric": "loss"}, "/metric"),
        ({"name": ""}, "/name"),
        ({"model": BASE}, "/model"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(
    api: Api, model_id: str, values: dict[str, Any], pointer: str
) -> None:
    response = api.client.post("/v1/comparisons", json=asked(api, model_id, **values))
    problem = assert_problem(response, 422, "invalid_request")
    assert pointer in [fault["pointer"] for fault in problem["errors"]], problem
    assert api.client.get("/v1/comparisons").json()["data"] == []
    assert api.queue.rings == []


def test_what_is_not_there_yet_or_cannot_be_used(api: Api, model_id: str, tmp_path: Path) -> None:
    processing = add_dataset(api.database, DatasetState.PROCESSING)
    response = api.client.post("/v1/comparisons", json=asked(api, model_id, dataset_id=processing))
    assert_problem(response, 409, "dataset_not_ready")
    invalid = add_dataset(api.database, DatasetState.INVALID)
    response = api.client.post("/v1/comparisons", json=asked(api, model_id, dataset_id=invalid))
    assert_problem(response, 422, "dataset_invalid")
    official = add_model(api.database, api.storage, tmp_path, base_model="sam3")
    for other in ("sam3", official):
        response = api.client.post("/v1/comparisons", json=asked(api, model_id, models=[model_id, other]))
        problem = assert_problem(response, 422, "base_model_unavailable")
        assert [fault["pointer"] for fault in problem["errors"]] == ["/models/1"]
    gone = add_dataset(api.database)
    assert api.client.delete(f"/v1/datasets/{gone}").status_code == 204
    response = api.client.post("/v1/comparisons", json=asked(api, model_id, dataset_id=gone))
    assert_problem(response, 422, "invalid_request")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/report"), ("GET", f"/evaluation/{BASE}/truth.json")):
        assert_problem(api.client.request(method, f"/v1/comparisons/cmp_none{path}"), 404, "not_found")
    assert api.queue.rings == []


def test_a_comparison_is_queued_and_told_of(api: Api, model_id: str) -> None:
    created = api.client.post("/v1/comparisons", json=asked(api, model_id, max_images=3))
    assert created.status_code == 201, created.text
    found = created.json()
    assert created.headers["location"] == found["urls"]["self"] == f"/v1/comparisons/{found['id']}"
    assert int(created.headers["retry-after"]) > 0
    assert (found["status"], found["is_terminal"], found["progress"], found["result"]) == ("queued", False, None, None)
    assert [(each["model"], each["base_model"]) for each in found["models"]] == [(BASE, BASE), (model_id, BASE)]
    assert (found["models"][0]["url"], found["models"][1]["url"]) == (None, f"/v1/models/{model_id}")
    assert found["name"] == "pallets-v1 against sam3-tiny (untuned)"
    assert (found["split"], found["max_images"], found["metric"]) == (None, 3, "segm_mAP")
    assert api.queue.rings == [(Task.COMPARE, found["id"])]
    again = api.client.get(f"/comparisons/{found['id']}")
    assert again.json() == found
    assert int(again.headers["retry-after"]) > 0
    for path in ("report", f"evaluation/{BASE}/truth.json"):
        assert_problem(api.client.get(f"/v1/comparisons/{found['id']}/{path}"), 404, "not_found")


def test_models_of_one_name_are_told_apart(api: Api, model_id: str, tmp_path: Path) -> None:
    other = add_model(api.database, api.storage, tmp_path)
    found = api.client.post("/v1/comparisons", json=asked(api, model_id, models=[other, model_id])).json()
    assert [each["name"] for each in found["models"]] == [f"pallets-v1 ({each})" for each in (other, model_id)]


def test_the_same_key_makes_one_comparison(api: Api, model_id: str) -> None:
    body, key = asked(api, model_id), {"Idempotency-Key": "c-1"}
    first, again = (api.client.post("/v1/comparisons", json=body, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(api.client.get("/v1/comparisons").json()["data"]) == 1
    other = api.client.post("/v1/comparisons", json=body | {"max_images": 1}, headers=key)
    assert_problem(other, 422, "idempotency_key_reused")


def test_list_is_by_key_and_filtered(api: Api, model_id: str, tmp_path: Path) -> None:
    other, dataset = add_model(api.database, api.storage, tmp_path), add_dataset(api.database)
    ids = []
    for pair in ((BASE, model_id), (other, BASE), (model_id, other)):
        ids.append(add_comparison(api.database, api.settings, pair, dataset_id=dataset))
        api.clock.advance(1)
    elsewhere = add_comparison(api.database, api.settings, (BASE, other))
    finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))

    def listed(**query: object) -> list[str]:
        return [each["id"] for each in api.client.get("/v1/comparisons", params=query).json()["data"]]

    assert listed() == [elsewhere, *ids[::-1]]
    assert listed(dataset_id=dataset) == ids[::-1]
    assert listed(model=model_id) == [ids[2], ids[0]]
    assert listed(model=BASE, dataset_id=dataset) == [ids[1], ids[0]]
    assert listed(status="succeeded") == [ids[0]]
    assert listed(status="queued,running", order="asc") == [ids[1], ids[2], elsewhere]
    assert listed(limit=1, after=ids[2]) == [ids[1]]
    assert listed(order="asc", before=ids[2]) == ids[:2]
    assert_problem(api.client.get("/v1/comparisons?after=cmp_none"), 404, "not_found")
    assert_problem(api.client.get("/v1/comparisons?status=cancelled"), 422, "invalid_request")


@pytest.mark.parametrize(
    ("values", "better"), [((0.25, 0.5), 1), ((0.5, 0.25), 0), ((0.5, 0.5), None), ((0.5, None), None)]
)
def test_the_result_says_which_is_better(
    api: Api, model_id: str, tmp_path: Path, values: tuple[float | None, ...], better: int | None
) -> None:
    add_comparison(api.database, api.settings, (BASE, model_id))
    found = api.client.get(f"/v1/comparisons/{finish_comparison(api.database, api.storage, tmp_path, values)}").json()
    names = (BASE, model_id)
    assert (found["status"], found["is_terminal"]) == ("succeeded", True)
    assert found["progress"] == {"images_done": 8, "images_total": 8}
    result = found["result"]
    assert (result["split"], result["images"]) == ("validation", 4)
    assert result["better"] == (None if better is None else names[better])
    mask, absent = result["metrics"]
    assert mask["values"] == list(values)
    assert mask["difference"] == (None if None in values else values[1] - values[0])  # type: ignore[operator]
    assert (absent["metric"], absent["difference"], absent["better"]) == ("absent_FPR", 0.25, BASE)  # lower is better
    assert result["per_category"][0]["name"] == "bolt"
    assert result["per_category"][0]["metrics"][0]["better"] == result["better"]
    assert [rows[0]["false_alarms"] for rows in result["absent_prompts"]] == [0, 1]
    assert result["notes"] == (["no masks"] if None in values else [])


def test_report_and_files_are_downloads_like_all_others(api: Api, model_id: str, tmp_path: Path) -> None:
    add_comparison(api.database, api.settings, (BASE, model_id))
    comparison_id = finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))
    found = api.client.get(f"/v1/comparisons/{comparison_id}").json()
    assert [(file["model"], file["name"]) for file in found["result"]["files"]] == [
        (model, f"{name}.json") for model in (BASE, model_id) for name in ("evaluation", "predictions", "truth")
    ]
    for number, file in ((0, found["result"]["files"][2]), (1, found["result"]["files"][5])):
        response = api.client.get(file["url"])
        assert response.text == f"{number}/truth.json of {comparison_id}"
        assert response.headers["etag"] == f'"{file["sha256"]}"'
        assert api.client.get(file["url"], headers={"If-None-Match": response.headers["etag"]}).status_code == 304
        part = api.client.get(file["url"], headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.text) == (206, "trut")
        assert api.client.head(file["url"]).headers["content-length"] == str(file["bytes"])
    page = api.client.get(found["urls"]["report"])
    assert page.text == f"report.html of {comparison_id}"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in page.headers["content-security-policy"]
    assert_problem(api.client.get(f"/v1/comparisons/{comparison_id}/evaluation/sam3/truth.json"), 404, "not_found")
    unknown = api.client.get(f"/v1/comparisons/{comparison_id}/evaluation/{BASE}/report.html")
    assert_problem(unknown, 422, "invalid_request")


def test_a_deleted_comparison_is_gone_with_its_files(api: Api, model_id: str, tmp_path: Path) -> None:
    add_comparison(api.database, api.settings, (BASE, model_id))
    comparison_id = finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))
    assert len(api.storage.list("comparisons")) == 7
    assert api.client.delete(f"/v1/comparisons/{comparison_id}").status_code == 204
    assert api.storage.list("comparisons") == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/report")):
        assert_problem(api.client.request(method, f"/v1/comparisons/{comparison_id}{path}"), 404, "not_found")
    assert api.client.get(f"/v1/models/{model_id}").status_code == 200


# What follows is the same on both databases.


def claimed(database: Database) -> Any:
    with database.write() as unit:
        held = unit.comparisons.claim("w-1")
    assert held is not None
    return held


def test_a_worker_loses_what_is_deleted_meanwhile(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    model_id = add_model(database, storage, tmp_path)
    add_comparison(database, settings, (BASE, model_id))
    held = claimed(database)
    with database.write() as unit:
        unit.comparisons.heartbeat(held.id, held.epoch, images_done=1, images_total=8)
    with database.read() as unit:
        assert unit.comparisons.get(held.id).images_done == 1
    delete_comparison(database, storage, held.id)
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.comparisons.heartbeat(held.id, held.epoch)
    file = storage.put_file(f"comparisons/{held.id}/e1/report.html", _file(tmp_path))
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.comparisons.succeed(held.id, held.epoch, files={"report.html": file}, result={})
    with pytest.raises(NotFoundError):
        delete_comparison(database, storage, held.id)


def test_deleting_a_model_fails_what_has_not_ended_and_leaves_what_has(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    model_id, other = (add_model(database, storage, tmp_path) for _ in range(2))
    add_comparison(database, settings, (BASE, model_id), name="ended")
    ended = finish_comparison(database, storage, tmp_path, (0.25, 0.5))
    add_comparison(database, settings, (model_id, BASE))
    held = claimed(database)
    queued = add_comparison(database, settings, (other, model_id))
    unrelated = add_comparison(database, settings, (other, BASE))
    with database.write() as unit:
        delete_model(unit, model_id)
    with database.read() as unit:
        states = {each: unit.comparisons.get(each).state for each in (ended, held.id, queued, unrelated)}
        error = unit.comparisons.get(queued).error or {}
        assert unit.comparisons.get(ended).models[1]["name"] == "pallets-v1"
        assert len(unit.comparisons.get(ended).files) == 7
    assert list(states.values()) == [WorkState.SUCCEEDED, WorkState.FAILED, WorkState.FAILED, WorkState.QUEUED]
    assert (error["code"], error["retryable"]) == ("model_deleted", False)
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.comparisons.heartbeat(held.id, held.epoch)
    assert claimed(database).id == unrelated


def test_no_comparison_waits_for_a_model_that_is_deleted_at_the_same_time(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    dataset_id = add_dataset(database)
    refused: list[ServiceError] = []

    def create(model_id: str) -> None:
        try:
            add_comparison(database, settings, (BASE, model_id), dataset_id=dataset_id)
        except ServiceError as error:
            refused.append(error)

    for _ in range(8):
        model_id = add_model(database, storage, tmp_path)
        thread = threading.Thread(target=create, args=(model_id,))
        thread.start()
        with database.write() as unit:
            delete_model(unit, model_id)
        thread.join()
    assert {error.errors[0]["code"] for error in refused} <= {"model_not_found"}
    with database.write() as unit:
        assert unit.comparisons.claim("w-1") is None


def test_a_dataset_is_needed_until_the_comparison_has_ended(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path, clock: FakeClock
) -> None:
    model_id, dataset_id = add_model(database, storage, tmp_path), add_dataset(database)
    with database.write() as unit:
        unit.datasets.get(dataset_id).finished_at = clock.now()
    clock.advance(100)
    comparison_id = add_comparison(database, settings, (BASE, model_id), dataset_id=dataset_id)
    with pytest.raises(DatasetInUseError, match=comparison_id), database.write() as unit:
        delete_dataset(unit, dataset_id)
    with database.read() as unit:
        assert dataset_id not in unit.datasets.unused(50, limit=20)
    finish_comparison(database, storage, tmp_path, (0.25, 0.5))
    with database.read() as unit:
        assert dataset_id not in unit.datasets.unused(50, limit=20)
    clock.advance(100)
    with database.read() as unit:
        assert dataset_id in unit.datasets.unused(50, limit=20)
    with database.write() as unit:
        delete_dataset(unit, dataset_id)
    with database.read() as unit:
        assert unit.comparisons.get(comparison_id).state is WorkState.SUCCEEDED


def test_the_database_itself_refuses_other_moves(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    add_comparison(database, settings, (BASE, add_model(database, storage, tmp_path)))
    with pytest.raises(DatabaseError), database.write() as unit:
        unit.session.execute(text("UPDATE comparisons SET state = 'succeeded'"))
    finish_comparison(database, storage, tmp_path, (0.25, 0.5))
    with pytest.raises(DatabaseError), database.write() as unit:
        unit.session.execute(text("UPDATE comparisons SET state = 'failed'"))


def test_the_reconciler_announces_takes_away_and_sweeps(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path, queue: FakeQueue, clock: FakeClock
) -> None:
    reconciler = Reconciler(settings, database, storage, queue, clock)
    model_id = add_model(database, storage, tmp_path)
    add_comparison(database, settings, (BASE, model_id))
    kept = finish_comparison(database, storage, tmp_path, (0.25, 0.5))
    add_comparison(database, settings, (BASE, model_id))
    lost = claimed(database)
    storage.put_file(f"comparisons/{lost.id}/e1/report.html", _file(tmp_path))
    waiting = add_comparison(database, settings, (model_id, BASE))
    queue.rings.clear()
    reconciler.run_once()
    assert queue.rings == [(Task.COMPARE, waiting)]
    for _ in range(7):
        clock.advance(5)
        reconciler.run_once()
    with database.read() as unit:
        assert unit.comparisons.get(lost.id).state is WorkState.QUEUED
    clock.elapsed_s = 400 * 86400.0  # beyond the files' own time, which is today's
    reconciler.run_once()
    reconciler.sweep()
    reconciler.sweep()
    assert (Task.COMPARE, lost.id) in queue.rings
    left = storage.list("comparisons")
    assert len(left) == 7
    assert all(key.startswith(f"comparisons/{kept}/") for key in left)


def _file(folder: Path) -> Path:
    path = folder / "left"
    path.write_bytes(b"x")
    return path


def test_not_too_many_wait(settings: Settings, database: Database, tmp_path: Path) -> None:
    few = settings.model_copy(update={"max_waiting_comparisons": 1})
    model = add_model(database, Storage(settings), tmp_path)
    spec = ComparisonSpec(add_dataset(database), [BASE, model], None, None, None, "segm_mAP")
    with database.write() as unit:
        create_comparison(unit, few, spec)
    with database.write() as unit, pytest.raises(QueueFullError):
        create_comparison(unit, few, spec)
