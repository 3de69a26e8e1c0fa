"""Jobs that need several GPUs: who takes them, what they count, and what is told where nobody can take them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from service.shared.db.models import Dataset
from service.shared.states import JobState
from tests.service.conftest import Api, add_dataset, add_job, body, served
from tests.service.test_estimates_api import NUMBERS, answer
from tests.service.test_jobs_api import create
from tests.service.test_jobs_repository import read

if TYPE_CHECKING:
    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database
    from tests.service.conftest import FakeClock

TWO = {"gpus": 2}


def claim(database: Database, gpus: int) -> Job | None:
    with database.write() as unit:
        return unit.jobs.claim("w-1", "2 x NVIDIA H100", gpus=gpus)


def beat(api: Api, worker: str, gpus: int, **facts: Any) -> None:
    with api.database.write() as unit:
        unit.workers.beat(worker, **{"kind": "gpu", "host": "h", "pid": 1, "device": "d", "gpus": gpus} | facts)


def test_a_worker_takes_what_it_has_the_gpus_for_in_the_order_of_the_queue(
    database: Database, clock: FakeClock
) -> None:
    dataset = add_dataset(database)
    large = add_job(database, dataset, gpus=4, priority=90)
    clock.advance(1)
    middle = add_job(database, dataset, gpus=2)
    clock.advance(1)
    small = add_job(database, dataset, gpus=1)
    for gpus, expected in ((1, small), (1, None), (3, middle), (3, None), (4, large), (16, None)):
        job = claim(database, gpus)
        assert (None if job is None else job.id) == expected


def test_turns_and_priorities_hold_among_what_fits(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    chance = random.Random(3)
    jobs = {}
    for _ in range(40):
        clock.advance(1)
        values = {
            "gpus": chance.choice((1, 2, 4)),
            "priority": chance.choice((40, 60)),
            "project": chance.choice("abc"),
        }
        jobs[add_job(database, dataset, **values)] = (len(jobs), values)
    running = dict.fromkeys("abc", 0)
    while jobs:
        has = chance.choice((1, 2, 4))
        fitting = [
            (-values["priority"], running[values["project"]], number, job_id)
            for job_id, (number, values) in jobs.items()
            if values["gpus"] <= has
        ]
        # Of the projects with the fewest running jobs the one with the oldest job that fits, and that job.
        expected = min(fitting)[-1] if fitting else None
        job = claim(database, has)
        assert (None if job is None else job.id) == expected
        if job is not None:
            running[job.project] += 1
            del jobs[job.id]


def test_gpu_seconds_count_every_gpu(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database, gpus=4)
    for _ in range(2):
        job = claim(database, 4)
        assert job is not None
        clock.advance(10)
        with database.write() as unit:
            unit.attempts.finish(job_id, job.epoch, JobState.QUEUED, reason="drain")
    assert read(database, job_id).gpu_seconds == pytest.approx(80)
    job = claim(database, 4)
    assert job is not None
    clock.advance(5)
    with database.write() as unit:
        unit.attempts.heartbeat(job_id, job.epoch)
        [lease] = unit.attempts.leases()
        unit.attempts.reap(lease)
    assert read(database, job_id).gpu_seconds == pytest.approx(100)


def test_a_job_shows_its_gpus_and_what_they_make_of_a_step(api: Api) -> None:
    config = {"training": {"batch_size": 3, "gradient_accumulation_steps": 5}}
    job = create(api, resources=TWO, config=config)
    assert job["resources"] == TWO
    assert job["resolved"]["resources"] == {"gpus": 2, "images_per_step": 30}
    assert claim(api.database, 2) is not None
    api.clock.advance(7)
    with api.database.write() as unit:
        unit.attempts.finish(job["id"], 1, JobState.FAILED, error={"code": "diverged", "message": "m"})
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["usage"]["gpu_seconds"] == 14
    assert api.client.get(f"/v1/jobs/{job['id']}/attempts").json()["data"][0]["gpu_seconds"] == 14


def test_jobs_made_from_a_job_need_as_many_gpus(api: Api) -> None:
    old = create(api, resources=TWO)
    api.client.post(f"/v1/jobs/{old['id']}/cancel")
    for path in ("retry", "clone"):
        new = api.client.post(f"/v1/jobs/{old['id']}/{path}").json()
        assert (new["resources"], new["resolved"]["resources"]) == (TWO, old["resolved"]["resources"])
    changed = api.client.post(f"/v1/jobs/{old['id']}/clone", json={"overrides": {"resources": {"gpus": 4}}}).json()
    assert (changed["resources"]["gpus"], changed["resolved"]["resources"]["gpus"]) == (4, 4)
    sweep = {
        "name": "s",
        "job": {"base_model": "sam3-tiny", "dataset_id": old["dataset_id"], "resources": TWO},
        "parameters": {"lora.rank": {"values": [2, 4]}},
    }
    trials = api.client.post("/v1/sweeps", json=sweep).json()["trials"]
    assert [api.client.get(trial["url"]).json()["resources"] for trial in trials] == [TWO, TWO]


def test_the_queue_says_that_no_worker_has_the_gpus(api: Api) -> None:
    dataset = add_dataset(api.database)
    small, large = create(api, dataset_id=dataset), create(api, dataset_id=dataset, resources={"gpus": 4})

    def queues() -> list[tuple[bool, str | None]]:
        reads = [api.client.get(f"/v1/jobs/{job['id']}").json()["queue"] for job in (small, large)]
        return [(read["estimated_start_at"] is not None, read["reason"]) for read in reads]

    assert queues() == [(False, "no worker that trains is running")] * 2
    beat(api, "w-0", 8, kind="cpu")  # checks datasets
    assert queues()[0][1] == "no worker that trains is running"
    beat(api, "w-1", 1)
    beat(api, "w-2", 2)
    too_large = "no worker with 4 GPUs is running; the largest has 2"
    assert queues() == [(True, None), (False, too_large)]
    listed = {job["id"]: job["queue"]["reason"] for job in api.client.get("/v1/jobs").json()["data"]}
    assert listed == {small["id"]: None, large["id"]: too_large}
    beat(api, "w-3", 4)
    assert [reason for _, reason in queues()] == [None, None]
    api.clock.advance(api.settings.lease_timeout_s + 1)
    beat(api, "w-2", 2)  # the others are gone
    assert queues()[1][1] == too_large
    assert claim(api.database, 2) is not None  # the small one, which is told nothing while it runs
    assert queues()[0] == (False, None)


def test_an_estimate_is_of_one_gpu_and_fits_where_there_are_enough(settings: Settings) -> None:
    memory = 80 * 10**9
    with served(settings.model_copy(update={"estimate_wait_s": 0.0})) as api:
        sent = body(dataset_id=add_dataset(api.database), resources=TWO)
        for worker, device, gpus in (("a", "NVIDIA H100", 1), ("b", "2 x NVIDIA H100", 2), ("c", "CPU", 2)):
            beat(api, worker, gpus, device=device, memory_bytes=memory)
        assert api.client.post("/v1/jobs/estimate", json=sent).status_code == 202
        answer(api, result=NUMBERS)
        estimate = api.client.post("/v1/jobs/estimate", json=sent).json()
    assert estimate["resolved"]["resources"]["gpus"] == 2
    cuda, cpu = NUMBERS["needed_bytes"]["cuda"], NUMBERS["needed_bytes"]["cpu"]
    assert {d["device"]: (d["gpus"], d["needed_bytes"], d["fits"]) for d in estimate["devices"]} == {
        "NVIDIA H100": (1, cuda, False),
        "2 x NVIDIA H100": (2, cuda, True),
        "CPU": (2, 2 * cpu, False),  # two processes in the memory of one machine
    }


def test_times_are_expected_from_gpu_time_and_of_the_queue_from_the_clock(settings: Settings) -> None:
    with served(settings.model_copy(update={"estimate_wait_s": 0.0})) as api:
        dataset = add_dataset(api.database)
        with api.database.write() as unit:
            report = {"summary": {"images": 10}}
            unit.session.execute(update(Dataset).where(Dataset.id == dataset).values(report=report))
        create(api, dataset_id=dataset, resources=TWO)
        job = claim(api.database, 2)
        assert job is not None
        api.clock.advance(100)
        with api.database.write() as unit:
            unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"epochs": 5})
            assert unit.queue.usual_duration_s() == 100
        for gpus, seconds in ((1, 120), (2, 60), (4, 30)):  # 4 GPU seconds for an image and epoch
            config = {"training": {"max_epochs": 3}}
            sent = body(dataset_id=dataset, config=config, resources={"gpus": gpus})
            assert api.client.post("/v1/jobs/estimate", json=sent).json()["expected_seconds"] == seconds
