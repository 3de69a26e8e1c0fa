from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.shared.db.repositories.events import NewEvent
from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body, served

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.unit_of_work import Database


def create(api: Api, **values: Any) -> dict[str, Any]:
    values.setdefault("dataset_id", add_dataset(api.database))
    response = api.client.post("/v1/jobs", json=body(**values))
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def count_jobs(api: Api) -> int:
    return len(api.client.get("/v1/jobs?limit=100").json()["data"])


def test_a_created_job_is_queued_rung_and_shows_every_value_as_used(api: Api) -> None:
    dataset = add_dataset(api.database)
    config = {"lora": {"rank": 4}, "training": {"learning_rate": 1e-3}}
    sent = body(
        dataset_id=dataset, config=config, seed=7, tags=["a", "b", "a"], metadata={"ticket": "A-1"}, priority=90
    )
    response = api.client.post("/v1/jobs", json=sent)
    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["urls"]["self"]
    assert int(response.headers["retry-after"]) > 0
    assert job["status"] == "queued"
    assert job["config"] == config
    assert job["resolved"]["config"]["lora"]["rank"] == 4
    assert job["resolved"]["config"]["lora"]["alpha"] == 16.0
    assert job["resolved"]["config"]["training"]["seed"] == 7 == job["seed"]
    assert job["resolved"]["dataset_sha256"] == "0" * 64
    assert (job["tags"], job["metadata"], job["priority"]) == (["a", "b"], {"ticket": "A-1"}, 90)
    assert job["allowed_actions"] == ["cancel", "pause"]
    assert job["queue"] == {
        "jobs_ahead": 0,
        "estimated_start_at": None,
        "reason": "no worker that trains is running",
    }
    assert job["resources"] == {"gpus": 1}
    assert api.queue.rings == [(Task.TRAIN, job["id"])]
    assert api.client.get(job["urls"]["self"]).json() == job
    assert api.client.get(f"/jobs/{job['id']}").json() == job


def test_paths_of_a_worker_that_an_earlier_release_stored_are_not_shown(database: Database, settings: Settings) -> None:
    run = {"config": {"output": {"dir": "/w/run", "project": "p"}}, "trainable_percent": 0.5}
    job_id = add_job(database, resolved={"config": {}, "run": run})
    with database.write() as unit:
        claimed = unit.jobs.claim("w-1")
        assert claimed is not None
        unit.events.append(job_id, claimed.epoch, [NewEvent("resolved", "", run)])
    with served(settings) as api:
        read = api.client.get(f"/v1/jobs/{job_id}").json()
        event = api.client.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]
    assert (
        read["resolved"]["run"] == {"config": {"output": {"project": "p"}}, "trainable_percent": 0.5} == event["data"]
    )


def test_a_job_is_accepted_while_the_broker_is_down(api: Api) -> None:
    api.queue.down = True
    assert create(api)["status"] == "queued"


def test_a_job_on_an_unchecked_dataset_waits_for_it(api: Api) -> None:
    job = create(api, dataset_id=add_dataset(api.database, DatasetState.PROCESSING))
    assert job["status"] == "validating_files"
    assert not api.queue.rings


def test_a_job_whose_dataset_nobody_checks_says_so_until_somebody_does(database: Database, settings: Settings) -> None:
    unchecked = add_dataset(database, DatasetState.PROCESSING)
    with served(settings) as api:
        url = create(api, dataset_id=unchecked)["urls"]["self"]
        reason = "no worker that checks datasets is running"
        silent = {"jobs_ahead": None, "estimated_start_at": None, "reason": reason}
        with api.database.write() as unit:
            unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device=None)
        assert api.client.get(url).json()["queue"] == silent
        with api.database.write() as unit:
            unit.workers.beat("w-2", kind="cpu", host="h", pid=2, device=None)
        assert api.client.get(url).json()["queue"] == silent | {"reason": None}
        api.clock.advance(settings.lease_timeout_s + 1)
        assert api.client.get(url).json()["queue"] == silent
        assert [job["queue"] for job in api.client.get("/v1/jobs").json()["data"]] == [silent]


def test_a_jobs_urls_lead_somewhere(api: Api) -> None:
    urls = create(api)["urls"]
    assert urls["html"].startswith("/ui/jobs/")
    assert "<html" in api.client.get(urls["html"]).text
    for name, url in urls.items():
        if "stream" in name:
            with api.client.stream("GET", url) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
        elif name not in ("evaluation", "report", "samples"):  # of which there are none before it trains
            assert api.client.get(url).status_code == 200, url


@pytest.mark.parametrize("state", [DatasetState.INVALID, DatasetState.FAILED])
def test_a_job_on_a_bad_dataset_is_refused(api: Api, state: DatasetState) -> None:
    response = api.client.post("/v1/jobs", json=body(dataset_id=add_dataset(api.database, state)))
    assert assert_problem(response, 422, "dataset_invalid")["errors"][0]["pointer"] == "/dataset_id"


def test_a_dataset_that_could_not_be_checked_is_refused_with_the_reason(database: Database, settings: Settings) -> None:
    error = {"code": "source_unavailable", "message": "There is no bucket.", "hint": "Name one.", "retryable": False}
    failed, invalid = (add_dataset(database, state) for state in (DatasetState.FAILED, DatasetState.INVALID))
    with database.write() as unit:
        unit.datasets.get(failed).error = error
    with served(settings) as api:
        detail, other = (
            assert_problem(api.client.post("/v1/jobs", json=body(dataset_id=each)), 422, "dataset_invalid")["detail"]
            for each in (failed, invalid)
        )
    assert detail == f"Dataset {failed} could not be checked: There is no bucket. Name one."
    assert f"/v1/datasets/{invalid}/validation" in other


def test_the_official_base_needs_weights_on_the_server(api: Api, tmp_path: Path) -> None:
    sent = body(dataset_id=add_dataset(api.database), base_model="sam3")
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "base_model_unavailable")
    assert "SAM3_CHECKPOINT" in problem["detail"]
    weights = tmp_path / "sam3.pt"
    weights.touch()
    with served(Settings(data_dir=api.settings.data_dir, checkpoint=weights)) as other:
        assert other.client.post("/v1/jobs", json=sent).status_code == 201


def test_two_different_seeds_are_refused_and_the_configurations_seed_counts_alone(api: Api) -> None:
    dataset = add_dataset(api.database)
    sent = body(dataset_id=dataset, seed=1, config={"training": {"seed": 2}})
    assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert create(api, dataset_id=dataset, config={"training": {"seed": 2}})["seed"] == 2
    assert create(api, dataset_id=dataset)["seed"] == 42


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": 5}, "/name"),
        ({"nmae": "x"}, "/nmae"),
        ({"dataset_id": "ds_nope"}, "/dataset_id"),
        ({"dataset_id": 2**63}, "/dataset_id"),
        ({"base_model": "sam9"}, "/base_model"),
        ({"seed": -1}, "/seed"),
        ({"seed": 10**400}, "/seed"),
        ({"seed": True}, "/seed"),
        ({"priority": 101}, "/priority"),
        ({"priority": 5.5}, "/priority"),
        ({"limits": {"max_attempts": 0}}, "/limits/max_attempts"),
        ({"resources": {"gpus": 0}}, "/resources/gpus"),
        ({"resources": {"gpus": 17}}, "/resources/gpus"),
        ({"resources": {"gpus": "2"}}, "/resources/gpus"),
        ({"resources": {"gpus": True}}, "/resources/gpus"),
        ({"resources": {"gpus": 1.5}}, "/resources/gpus"),
        ({"resources": {"gpu": 2}}, "/resources/gpu"),
        ({"resources": 2}, "/resources"),
        ({"limits": {"max_runtime_s": 10**18}}, "/limits/max_runtime_s"),
        ({"tags": ["x"] * 33}, "/tags"),
        ({"tags": [""]}, "/tags/0"),
        ({"metadata": {"k": 1}}, "/metadata/k"),
        ({"metadata": {f"k{n}": "v" for n in range(17)}}, "/metadata"),
        ({"config": {"lora": {"rank": 10**6}}}, "/config/lora/rank"),
        ({"config": {"lora": {"rnk": 8}}}, "/config/lora/rnk"),
        ({"config": {"lora": {"alpha": True}}}, "/config/lora/alpha"),
        ({"config": {"model": {"base": "sam3"}}}, "/config/model"),
        ({"config": {"output": {"dir": "/etc"}}}, "/config/output"),
        ({"config": {"dataset": {"train_ann_file": "/etc/passwd"}}}, "/config/dataset/train_ann_file"),
        ({"config": []}, "/config"),
        ({"validation_dataset_id": 5}, "/validation_dataset_id"),
        ({"project": "a/b"}, "/project"),
        ({"init_from": {}}, "/init_from"),
        ({"init_from": ""}, "/init_from/checkpoint_id"),
        ({"init_from": {"job_id": "job_nope"}}, "/dataset_id"),
    ],
)
def test_each_wrong_value_is_named_by_its_pointer(api: Api, values: dict[str, Any], pointer: str) -> None:
    sent = body(dataset_id="ds_x") | values
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert pointer in [fault["pointer"] for fault in problem["errors"]]
    assert count_jobs(api) == 0


def test_everything_that_is_wrong_is_told_at_once(database: Database, settings: Settings) -> None:
    invalid = add_dataset(database, DatasetState.INVALID)
    wrong = body(
        dataset_id="ds_nope",
        validation_dataset_id=invalid,
        init_from={"job_id": "job_nope"},
        base_model="sam3",
        seed=1,
        config={"training": {"seed": 2}},
    )
    expected = [
        ("/base_model", "base_model_unavailable"),
        ("/dataset_id", "dataset_not_found"),
        ("/validation_dataset_id", "dataset_invalid"),
        ("/init_from", "job_not_found"),
        ("/seed", "conflicting_seed"),
    ]
    with served(settings) as api:
        for path in ("/v1/jobs", "/v1/jobs/estimate"):
            problem = assert_problem(api.client.post(path, json=wrong), 422, "invalid_request")
            assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == expected
            assert all(text in problem["detail"] for text in ("'ds_nope'", invalid, "'job_nope'", "SAM3_CHECKPOINT"))
        alone = api.client.post("/v1/jobs", json=body(dataset_id=invalid))
        assert_problem(alone, 422, "dataset_invalid")  # the only fault keeps its code


def test_an_unknown_key_names_the_nearest_known_one(api: Api) -> None:
    sent = body(dataset_id="ds_x", config={"training": {"learning_rat": 1e-4}})
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert "did you mean 'learning_rate'?" in problem["errors"][0]["message"]


def test_one_key_makes_one_job_and_repeats_its_answer(api: Api) -> None:
    sent = body(dataset_id=add_dataset(api.database))
    first = api.client.post("/v1/jobs", json=sent, headers={"Idempotency-Key": "k1"})
    again = api.client.post("/v1/jobs", json=dict(reversed(sent.items())), headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert "idempotent-replayed" not in first.headers
    other = api.client.post("/v1/jobs", json=sent | {"name": "other"}, headers={"Idempotency-Key": "k1"})
    assert_problem(other, 422, "idempotency_key_reused")
    assert count_jobs(api) == 1
    assert len(api.queue.rings) == 1
    create(api)
    assert count_jobs(api) == 2


def test_a_refused_create_does_not_use_up_its_key(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert api.client.post("/v1/jobs", json=body(dataset_id="ds_nope"), headers=headers).status_code == 422
    sent = body(dataset_id=add_dataset(api.database))
    assert api.client.post("/v1/jobs", json=sent, headers=headers).status_code == 201


def test_concurrent_creates_with_one_key_make_one_job(settings: Settings) -> None:
    with served(settings) as api:
        sent = body(dataset_id=add_dataset(api.database))
        barrier = threading.Barrier(6)
        answers: list[tuple[int, str]] = []

        def race() -> None:
            barrier.wait()
            response = api.client.post("/v1/jobs", json=sent, headers={"Idempotency-Key": "k1"})
            answers.append((response.status_code, response.json()["id"]))

        threads = [threading.Thread(target=race) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 6
        assert len(set(answers)) == 1
        assert answers[0][0] == 201
        assert count_jobs(api) == 1


def test_cancel_is_idempotent_and_names_why_it_cannot_apply(api: Api) -> None:
    job = create(api)
    for _ in range(2):
        response = api.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (response.status_code, response.json()["status"]) == (202, "cancelled")
    assert response.json()["is_terminal"]
    assert response.json()["allowed_actions"] == ["retry", "delete"]
    done = create(api)
    with api.database.write() as unit:
        claimed = unit.jobs.claim("w-1")
        assert claimed is not None
        unit.attempts.finish(claimed.id, claimed.epoch, JobState.SUCCEEDED, result={"steps": 3})
    problem = api.client.post(f"/v1/jobs/{done['id']}/cancel")
    assert "succeeded" in assert_problem(problem, 409, "state_conflict")["detail"]
    assert problem.headers["x-should-retry"] == "false"
    assert_problem(api.client.post("/v1/jobs/job_nope/cancel"), 404, "not_found")


def test_a_running_job_is_cancelling_until_its_worker_has_stopped(api: Api) -> None:
    job = create(api)
    with api.database.write() as unit:
        unit.jobs.claim("w-1", "NVIDIA H100")
    running = api.client.get(f"/v1/jobs/{job['id']}").json()
    assert (running["status"], running["phase"], running["attempt"]) == ("running", "starting", 1)
    assert running["worker"]["device"] == "NVIDIA H100"
    response = api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelling")


def test_an_unchanged_job_answers_304_and_a_changed_one_does_not(api: Api) -> None:
    url = f"/v1/jobs/{create(api)['id']}"
    etag = api.client.get(url).headers["etag"]
    for value in (etag, f'"x", W/{etag}', "*"):
        response = api.client.get(url, headers={"If-None-Match": value})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    api.client.post(f"{url}/cancel")
    response = api.client.get(url, headers={"If-None-Match": etag})
    assert response.status_code == 200
    assert response.headers["etag"] != etag


def test_pages_hold_every_job_once_though_new_ones_arrive(api: Api) -> None:
    dataset = add_dataset(api.database)
    ids = []
    for index in range(7):
        api.clock.advance(index % 2)  # some share their time of creation
        ids.append(create(api, dataset_id=dataset)["id"])
    newest_first = sorted(ids, reverse=True)
    for order, expected in (("desc", newest_first), ("asc", newest_first[::-1])):
        seen: list[str] = []
        query = {"limit": 3, "order": order}
        while True:
            page = api.client.get("/v1/jobs", params=query).json()
            seen += [job["id"] for job in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if order == "desc":
                create(api, dataset_id=dataset)  # never shifts what follows
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert [job for job in seen if job in ids] == expected
        assert len(seen) == len(set(seen))
    page = api.client.get("/v1/jobs", params={"before": newest_first[4], "limit": 2}).json()
    assert [job["id"] for job in page["data"]] == newest_first[2:4]
    assert page["has_more"]
    assert_problem(api.client.get("/v1/jobs?after=job_nope"), 404, "not_found")


def test_lists_filter_by_everything_at_once(settings: Settings) -> None:
    with served(settings) as api:
        dataset = add_dataset(api.database)
        plain = create(api, project="p", metadata={"k[1]": "a,b", "l": "v"})
        api.clock.advance(10)
        tagged = create(api, tags=["a", "b'\""], metadata={"l": "v"})
        api.clock.advance(10)
        other = create(api, dataset_id=dataset)
        api.client.post(f"/v1/jobs/{plain['id']}/cancel")

        def found(**query: str) -> set[str]:
            return {job["id"] for job in api.client.get("/v1/jobs", params=query).json()["data"]}

        assert found(status="cancelled") == {plain["id"]}
        assert found(status="cancelled,queued") == {plain["id"], tagged["id"], other["id"]}
        assert found(tag="a") == found(tag="b'\"") == {tagged["id"]}
        assert found(tag="%") == set()
        assert found(dataset_id=dataset) == {other["id"]}
        assert found(dataset_id=dataset, status="cancelled") == set()
        assert found(project="p") == found(**{"metadata[k[1]]": "a,b"}) == {plain["id"]}
        assert found(**{"metadata[l]": "v"}) == {plain["id"], tagged["id"]}
        assert found(**{"metadata[l]": "v", "tag": "a"}) == {tagged["id"]}
        assert found(**{"metadata[a]": "a"}) == found(**{"metadata[ ]": "a"}) == set()  # a tag is no metadata
        assert found(base_model="sam3-tiny", project="default") == {tagged["id"], other["id"]}
        assert found(base_model="sam3") == set()
        assert found(created_after=plain["created_at"]) == {tagged["id"], other["id"]}
        assert found(created_after=plain["created_at"], created_before=other["created_at"]) == {tagged["id"]}
        several = api.client.get("/v1/jobs", params=[("status", "cancelled"), ("status", "queued")]).json()
        assert len(several["data"]) == 3


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "order=up",
        "status=done",
        "status=queued,",
        "statu=queued",
        "base_model=sam9",
        "created_after=2026-01-01",
        "created_after=2026-01-01T00:00:00",
        "created_before=yesterday",
        "metadata=x",
        "metadata[]=x",
        "metadata[" + "k" * 65 + "]=x",
        "metadata[k]=a&metadata[k]=b",
        "metadata[k]=" + "v" * 513,
        "&".join(f"metadata[k{n}]=v" for n in range(17)),
        "project=" + "p" * 65,
    ],
)
def test_wrong_queries_are_refused(api: Api, query: str) -> None:
    assert_problem(api.client.get(f"/v1/jobs?{query}"), 422, "invalid_request")


@pytest.mark.parametrize(
    "child", ["", "/events", "/events/stream", "/metrics", "/logs", "/logs/stream", "/checkpoints"]
)
def test_children_of_an_unknown_job_are_not_found(api: Api, child: str) -> None:
    assert_problem(api.client.get(f"/v1/jobs/job_nope{child}"), 404, "not_found")


def test_a_failing_commit_is_never_a_success(api: Api) -> None:
    dataset = add_dataset(api.database)

    def fail(_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(api.database.engine, "commit", fail)
    try:
        response = api.client.post("/v1/jobs", json=body(dataset_id=dataset))
    finally:
        event.remove(api.database.engine, "commit", fail)
    assert_problem(response, 503, "database_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert count_jobs(api) == 0
    assert not api.queue.rings
    assert create(api, dataset_id=dataset)["status"] == "queued"


@pytest.mark.parametrize("field", [("dataset", "limit_images"), ("evaluation", "max_images")])
def test_a_number_that_no_answer_could_hold_is_refused_before_anything_is_stored(
    api: Api, field: tuple[str, str]
) -> None:
    section, name = field
    config = {section: {name: 10**30}}
    answer = api.client.post("/v1/jobs", json=body(dataset_id=add_dataset(api.database), config=config))
    assert_problem(answer, 422, "invalid_request")
    assert api.client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
def test_a_time_outside_the_calendar_is_refused(api: Api, name: str, time: str) -> None:
    assert_problem(api.client.get("/v1/jobs", params={name: time}), 422, "invalid_request")


def test_tags_count_once(api: Api) -> None:
    job = create(api, tags=["a", "b", "a"])
    assert job["tags"] == ["a", "b"]
    patched = api.client.patch(f"/v1/jobs/{job['id']}", json={"tags": ["c", "c"]})
    assert patched.json()["tags"] == ["c"]


def test_a_merge_patch_may_say_what_it_is(api: Api) -> None:
    url = f"/v1/jobs/{create(api)['id']}"
    headers = {"Content-Type": "application/merge-patch+json"}
    assert api.client.patch(url, content=b'{"name": "new"}', headers=headers).json()["name"] == "new"
    assert_problem(api.client.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type")


def test_if_match_refuses_what_others_changed_and_not_what_moved_by_itself(api: Api) -> None:
    ahead, mine = create(api), create(api)
    url = f"/v1/jobs/{mine['id']}"
    tag = api.client.get(url).headers["etag"]
    api.client.post(f"/v1/jobs/{ahead['id']}/cancel")
    assert api.client.get(url).headers["etag"] != tag  # its place in the queue is another
    changed = api.client.patch(url, json={"priority": 60}, headers={"If-Match": tag})
    assert changed.status_code == 200
    refused = api.client.patch(url, json={"priority": 70}, headers={"If-Match": tag})
    assert_problem(refused, 412, "precondition_failed")
    assert api.client.patch(url, json={"priority": 70}, headers={"If-Match": "*"}).status_code == 200
    assert api.client.patch(url, json={"priority": 80}, headers={"If-Match": '"x"'}).status_code == 412
