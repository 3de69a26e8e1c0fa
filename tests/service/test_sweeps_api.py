from __future__ import annotations

from typing import Any

import pytest

from service.shared.states import JobState
from tests.service.conftest import Api, add_dataset, assert_problem


def sweep(api: Api, dataset_id: str | None = None, **values: Any) -> dict[str, Any]:
    job = {"base_model": "sam3-tiny", "dataset_id": dataset_id or add_dataset(api.database)}
    return {"name": "rates", "job": job, "parameters": {"lora.rank": {"values": [4, 8]}}} | values


GRID = {"lora.rank": {"values": [4, 8]}, "training.learning_rate": {"values": [1e-3, 2e-3, 4e-3]}}


def test_a_grid_makes_a_job_for_each_combination(api: Api) -> None:
    created = api.client.post("/v1/sweeps", json=sweep(api, parameters=GRID))
    assert created.status_code == 201, created.text
    found = created.json()
    assert created.headers["location"] == f"/v1/sweeps/{found['id']}"
    assert (found["status"], found["counts"], found["best"]) == ("queued", {"queued": 6}, None)
    jobs = api.client.get("/v1/jobs", params={"sweep_id": found["id"], "order": "asc"}).json()["data"]
    tried = [(job["config"]["lora"]["rank"], job["config"]["training"]["learning_rate"]) for job in jobs]
    assert tried == [(4, 1e-3), (4, 2e-3), (4, 4e-3), (8, 1e-3), (8, 2e-3), (8, 4e-3)]
    assert [job["name"] for job in jobs] == [f"rates {number}" for number in range(1, 7)]
    assert jobs[0]["trial"] == {"lora.rank": 4, "training.learning_rate": 1e-3}
    assert jobs[0]["resolved"]["config"]["lora"]["rank"] == 4
    assert len(api.queue.rings) == 6
    assert api.client.get(f"/sweeps/{found['id']}").json() == found


def test_random_values_are_drawn_by_the_seed_within_their_bounds(api: Api) -> None:
    parameters = {
        "lora.rank": {"min": 4, "max": 64},
        "training.learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"},
        "training.lr_scheduler": {"values": ["cosine", "linear"]},
    }
    asked = sweep(api, parameters=parameters, method="random", trials=20)
    first, same, other = (
        [trial["values"] for trial in api.client.post("/v1/sweeps", json=asked | {"seed": seed}).json()["trials"]]
        for seed in (1, 1, 2)
    )
    assert first == same != other
    assert all(4 <= values["lora.rank"] <= 64 and isinstance(values["lora.rank"], int) for values in first)
    rates = [values["training.learning_rate"] for values in first]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 4 <= sum(rate < 1e-3 for rate in rates) <= 16  # as many in each decade, about
    assert {values["training.lr_scheduler"] for values in first} == {"cosine", "linear"}


def test_the_best_job_is_named_and_the_sweep_succeeds_if_one_does(api: Api) -> None:
    found = api.client.post("/v1/sweeps", json=sweep(api, parameters={"lora.rank": {"values": [4, 8, 16]}})).json()
    for value in (0.3, 0.7, None):
        with api.database.write() as unit:
            job = unit.jobs.claim("w-1")
            assert job is not None
            if value is not None:
                job.best = {"checkpoint_id": "ckpt_x", "metric": "segm_mAP", "value": value, "epoch": 1}
        assert api.client.get(f"/v1/sweeps/{found['id']}").json()["status"] == "running"
        with api.database.write() as unit:
            outcome = JobState.FAILED if value is None else JobState.SUCCEEDED
            unit.attempts.finish(job.id, job.epoch, outcome, result={"model_id": None})
    ended = api.client.get(f"/v1/sweeps/{found['id']}").json()
    assert (ended["status"], ended["is_terminal"]) == ("succeeded", True)
    assert ended["counts"] == {"succeeded": 2, "failed": 1}
    assert (ended["best"]["value"], ended["best"]["values"]) == (0.7, {"lora.rank": 8})
    assert [listed["id"] for listed in api.client.get("/v1/sweeps").json()["data"]] == [found["id"]]


def test_cancel_and_delete(api: Api) -> None:
    found = api.client.post("/v1/sweeps", json=sweep(api)).json()
    path = f"/v1/sweeps/{found['id']}"
    assert_problem(api.client.delete(path), 409, "state_conflict")
    for _ in range(2):
        cancelled = api.client.post(f"{path}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert api.client.delete(path).status_code == 204
    assert_problem(api.client.get(path), 404, "not_found")
    assert api.client.get("/v1/jobs", params={"sweep_id": found["id"]}).json()["data"] == []


def test_the_same_key_makes_one_sweep(api: Api) -> None:
    asked, key = sweep(api), {"Idempotency-Key": "s-1"}
    first, again = (api.client.post("/v1/sweeps", json=asked, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(api.client.get("/v1/jobs").json()["data"]) == 2


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"parameters": {"lora.rank": {"values": [8, 100_000]}}}, "/parameters/lora.rank"),
        ({"parameters": {"lora.rnak": {"values": [8]}}}, "/parameters/lora.rnak"),
        ({"parameters": {"lora.rank": {"values": []}}}, "/parameters/lora.rank"),
        ({"parameters": {"lora.rank": {"min": 9, "max": 3}}}, "/parameters/lora.rank"),
        ({"parameters": {"training.learning_rate": {"min": 0, "max": 1, "scale": "log"}}}, None),
        ({"parameters": {"../x": {"values": [1]}}}, None),
        ({"parameters": {"lora.rank": {"values": list(range(1, 12))}, "seed.x": {"values": list(range(10))}}}, ""),
        ({"parameters": {"lora.rank": {"min": 1, "max": 2}}}, ""),
        ({"method": "random"}, ""),
        ({"trials": 3}, ""),
        ({"job": {"base_model": "sam3-tiny"}}, "/job/dataset_id"),
        ({"job": {"base_model": "sam3-tiny", "dataset_id": "ds_none"}}, "/job/dataset_id"),
        ({"job": {"base_model": "sam3-tiny", "dataset_id": "ds_none", "config": 3}}, "/job/config"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(api: Api, values: dict[str, Any], pointer: str | None) -> None:
    problem = assert_problem(api.client.post("/v1/sweeps", json=sweep(api, **values)), 422, "invalid_request")
    if pointer is not None:
        assert pointer in [fault["pointer"] for fault in problem["errors"]], problem
    assert api.client.get("/v1/jobs").json()["data"] == []
    assert api.client.get("/v1/sweeps").json()["data"] == []
    assert api.queue.rings == []


@pytest.mark.parametrize(
    "drawn",
    [{"min": 1, "max": 10**400, "scale": "log"}, {"min": 0.5, "max": 10**400}, {"min": -(10**400), "max": 1}],
)
def test_numbers_that_cannot_be_drawn_are_refused(api: Api, drawn: dict[str, Any]) -> None:
    asked = sweep(api, method="random", trials=2, parameters={"training.learning_rate": drawn})
    assert_problem(api.client.post("/v1/sweeps", json=asked), 422, "invalid_request")
    assert api.client.get("/v1/sweeps").json()["data"] == []
