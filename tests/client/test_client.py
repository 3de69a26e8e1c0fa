"""The client against a real server: what it asks, what it makes of answers and faults."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sam3_lora.client import AsyncClient, Client
from sam3_lora.client._async import uploads as async_uploads
from sam3_lora.client._sync import uploads
from sam3_lora.client.errors import (
    ApiError,
    AuthenticationError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    DatasetNotReadyError,
    IntegrityError,
    InvalidRequestError,
    JobNotSucceededError,
    LocalFileError,
    NotFoundError,
    WaitTimeoutError,
)
from service.shared.db.repositories.events import NewEvent
from service.shared.states import Actor, DatasetState, JobState
from tests.client.cuts import bad_network, dice
from tests.service.conftest import Api, add_dataset, add_job, zip_bytes
from tests.service.results import add_model, claimed_job
from tests.service.test_estimates_api import NUMBERS

if TYPE_CHECKING:
    from pathlib import Path

FILES = ["adapter_config.json", "adapter_model.safetensors", "checkpoint.json"]


def test_a_job_is_created_changed_listed_and_acted_on(api: Api, client: Client) -> None:
    dataset = client.datasets.get(add_dataset(api.database))
    job = client.jobs.create(
        dataset, base_model="sam3-tiny", config={"lora": {"rank": 4}}, tags=["night"], priority=70, seed=None
    )
    assert (job.name, job.status, job.config["lora"]["rank"], job.priority) == ("pallets", "queued", 4, 70)
    assert job.update(name="other", metadata={"ticket": "A-1"}).name == "other"
    assert job.pause().status == "paused"
    assert job.resume().status == "queued"
    clone = job.clone(name="again", config={"lora": {"rank": 8}})
    assert (clone.name, clone.config["lora"]["rank"]) == ("again", 8)
    assert [each.id for each in client.jobs.list()] == [clone.id, job.id]
    assert [each.id for each in client.jobs.list(tag="night", limit=1)] == [clone.id]
    assert [each.id for each in client.jobs.list(status=["paused", "failed"])] == []
    assert job.cancel().is_terminal
    job.delete()
    with pytest.raises(NotFoundError, match=job.id):
        job.refresh()
    assert client.queue().queued == 1
    assert client.ready().status in ("ok", "degraded", "failed")
    assert client.recipe("sam3-tiny").base_model == "sam3-tiny"
    assert [each.status for each in client.datasets.list(status="ready")] == ["ready"]


def test_long_lists_come_whole(api: Api, client: Client) -> None:
    dataset = add_dataset(api.database)
    made = [add_job(api.database, dataset) for _ in range(230)]
    assert [job.id for job in client.jobs.list()] == made[::-1]
    assert [job.id for job in client.jobs.list(limit=150)] == made[::-1][:150]


def test_faults_are_errors_that_say_what_to_do(api: Api, client: Client) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        client.jobs.create(add_dataset(api.database), base_model="sam3-tiny", config={"lora": {"rnak": 4}})
    assert (refused.value.status, refused.value.code) == (422, "invalid_request")
    assert refused.value.faults[0]["pointer"] == "/config/lora/rnak"
    assert "rank" in str(refused.value)
    assert refused.value.request_id.startswith("req_")
    job = client.jobs.get(add_job(api.database)).cancel()
    with pytest.raises(ConflictError):
        job.pause()
    with pytest.raises(ClientError, match="no checkpoint yet"):
        job.download("x")
    with pytest.raises(ClientError, match="made no model"):
        job.model()
    refusal = httpx.MockTransport(lambda request: httpx.Response(401, json={"code": "unauthorized", "detail": "No."}))
    with Client(api_key="sam3_wrong", transport=refusal) as stranger, pytest.raises(AuthenticationError, match="No"):
        stranger.queue()


def test_a_server_that_is_away_is_tried_again_for_a_while_and_then_told() -> None:
    began = time.monotonic()
    told = r"http://127\.0\.0\.1:9 does not answer"
    with Client("http://127.0.0.1:9", retry_for_s=0.3) as client, pytest.raises(ConnectionFailedError, match=told):
        client.queue()
    assert 0.1 < time.monotonic() - began < 5


def test_an_answer_that_passes_is_waited_for_and_one_that_does_not_is_told() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.path.endswith("/jobs"):
            if len(asked) < 3:
                return httpx.Response(503, headers={"Retry-After": "0"})
            return httpx.Response(409, json={"code": "in_use", "detail": "No."}, headers={"x-should-retry": "false"})
        return httpx.Response(503, text="<html>", headers={"x-should-retry": "false"})

    with Client("http://a.example/v1/", transport=httpx.MockTransport(answer), retry_for_s=5) as client:
        with pytest.raises(ConflictError, match="No"):
            client.jobs.create("ds_1")
        keys = {request.headers["idempotency-key"] for request in asked}
        assert (len(asked), len(keys)) == (3, 1)
        assert str(asked[0].url) == "http://a.example/v1/jobs"
        with pytest.raises(ApiError, match="answered 503") as told:
            client.queue()
        assert (told.value.code, len(asked)) == ("service_unavailable", 4)


def test_waiting_ends_with_the_job(api: Api, client: Client) -> None:
    job = client.jobs.get(add_job(api.database, state=JobState.QUEUED, max_attempts=1))
    with pytest.raises(WaitTimeoutError, match="still queued"):
        job.wait(timeout_s=0.2)
    seen: list[str] = []

    def end() -> None:
        time.sleep(0.5)
        with api.database.write() as unit:
            unit.jobs.move(job.id, JobState.CANCELLED, Actor.API, reason="as asked")

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(JobNotSucceededError, match="is cancelled: as asked"):
        job.wait(progress=lambda now: seen.append(now.status))
    thread.join()
    assert seen == ["queued", "cancelled"]
    assert job.wait(check=False).status == "cancelled"


def test_an_estimate_is_waited_for_until_a_worker_has_made_it(api: Api, client: Client) -> None:
    dataset = add_dataset(api.database)
    with pytest.raises(WaitTimeoutError, match="no worker"):
        client.jobs.estimate(dataset, base_model="sam3-tiny", timeout_s=0)

    def work() -> None:
        with api.database.write() as unit:
            asked = unit.estimates.claim()
            assert asked is not None
            unit.estimates.finish(asked.id, result=NUMBERS)

    thread = threading.Timer(0.5, work)
    thread.start()
    found = client.jobs.estimate(dataset, base_model="sam3-tiny", timeout_s=60)
    thread.join()
    assert found.adapted is not None
    assert (found.status, found.adapted.trainable_parameters) == ("ready", 10)


def test_a_dataset_that_cannot_be_used_says_why(api: Api, client: Client) -> None:
    bad = client.datasets.get(add_dataset(api.database, DatasetState.INVALID))
    with pytest.raises(DatasetNotReadyError, match="is invalid") as told:
        bad.wait()
    assert told.value.report.status == "invalid"
    waiting = client.datasets.get(add_dataset(api.database, DatasetState.PROCESSING))
    with pytest.raises(WaitTimeoutError):
        waiting.wait(timeout_s=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_an_upload_over_a_bad_network_arrives_whole(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 2**16)
    content = zip_bytes(hashlib.sha512(bytes([seed])).digest() * 20_000)
    (tmp_path / "pallets.zip").write_bytes(content)
    told: list[tuple[int, int]] = []
    with bad_network(api.address, dice(seed)) as network, Client(network.url, retry_for_s=20) as client:
        dataset = client.datasets.upload(tmp_path / "pallets.zip", on_progress=lambda *each: told.append(each))
        assert network.cut > 0
    assert (dataset.name, dataset.bytes, dataset.sha256) == (
        "pallets",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert told[-1] == (len(content), len(content))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_program_that_was_killed_goes_on_with_its_upload(
    api: Api, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 2**16)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"{}")
    (folder / "a.jpg").write_bytes(bytes(300_000))

    def die(done: int, total: int) -> None:
        if done > 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.datasets.upload(folder, on_progress=die)
    told: list[int] = []
    first = client.datasets.upload(folder, on_progress=lambda done, total: told.append(done))
    assert told[0] > 150_000
    assert (first.name, first.filename) == ("data", "data.tar")
    second = client.datasets.upload(folder, name="anew")  # finished: the next is another
    assert second.id != first.id


def test_a_file_that_changes_under_way_makes_no_dataset(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes())
    with pytest.raises(LocalFileError, match="changed while it was sent"):
        client.datasets.upload(archive, on_progress=lambda done, total: archive.write_bytes(zip_bytes(b"{ }")))
    assert list(client.datasets.list()) == []


@pytest.mark.parametrize("seed", range(3))
def test_events_over_a_bad_network_are_all_there_once(api: Api, seed: int) -> None:
    job = claimed_job(api.database)

    def work() -> None:
        for number in range(400):
            with api.database.write() as unit:
                unit.events.append(job.id, job.epoch, [NewEvent("message", f"{number} {'x' * 200}")])
                unit.logs.append(job.id, job.epoch, f"line {number}\n")
        with api.database.write() as unit:
            unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"model_id": None})

    thread = threading.Thread(target=work)
    thread.start()
    with bad_network(api.address, dice(seed, most=30_000)) as network, Client(network.url, retry_for_s=20) as client:
        found = client.jobs.get(job.id)
        events = list(found.events())
        log = "".join(found.logs(follow_on=True))
        assert [event.seq for event in found.events(after=len(events) - 1)] == [len(events)]
        assert network.cut > 0
    thread.join()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    numbers = [int(event.message.split()[0]) for event in events if event.type == "message"]
    assert numbers == list(range(400))
    assert log == "".join(f"line {number}\n" for number in range(400))


@pytest.mark.parametrize("seed", range(3))
def test_a_download_over_a_bad_network_goes_on_and_is_verified(api: Api, tmp_path: Path, seed: int) -> None:
    add_model(api.database, api.storage, tmp_path)
    with Client(str(api.client.base_url)) as client:
        [job] = client.jobs.list()
        checkpoint_id = job.best_checkpoint().id
    with bad_network(api.address, dice(seed, most=6000)) as network:
        with Client(network.url, retry_for_s=20) as client:
            for number in range(8):
                folder = client.checkpoints.get(checkpoint_id).download(tmp_path / f"got-{number}")
                assert sorted(path.name for path in folder.iterdir()) == FILES
                assert (folder / "checkpoint.json").read_text() == f"checkpoint.json of {job.id}"
        assert network.cut > 0


def test_what_was_there_of_a_download_is_not_fetched_again_and_damage_is_not_kept(
    api: Api, client: Client, tmp_path: Path
) -> None:
    add_model(api.database, api.storage, tmp_path)
    [job] = client.jobs.list()
    checkpoint = job.best_checkpoint()
    assert checkpoint.archive is not None
    whole = checkpoint.download(tmp_path / "whole.zip", unpack=False).read_bytes()
    target = tmp_path / "again.zip"
    (tmp_path / "again.zip.part").write_bytes(whole[:100])
    told: list[int] = []
    checkpoint.download(target, unpack=False, on_progress=lambda done, total: told.append(done))
    assert told[0] > 100
    assert target.read_bytes() == whole
    target.unlink()
    (tmp_path / "again.zip.part").write_bytes(whole)
    assert checkpoint.download(target, unpack=False).read_bytes() == whole
    for wrong in (b"?" * 100, whole + b"more"):
        (tmp_path / "again.zip.part").write_bytes(wrong)
        if len(wrong) > len(whole):  # what is longer than the file is no part of it
            assert checkpoint.download(target, unpack=False).read_bytes() == whole
        else:
            target.unlink()
            with pytest.raises(IntegrityError, match="damaged"):
                checkpoint.download(target, unpack=False)
            assert not target.exists()
            assert not (tmp_path / "again.zip.part").exists()


def test_a_program_with_an_event_loop_does_the_same(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_uploads, "PART_BYTES", 2**16)
    content = zip_bytes(bytes(400_000))
    (tmp_path / "pallets.zip").write_bytes(content)

    async def use(url: str) -> dict[str, Any]:
        async with AsyncClient(url, retry_for_s=20) as client:
            dataset = await client.datasets.upload(tmp_path / "pallets.zip")
            job = await client.jobs.create(dataset, base_model="sam3-tiny")
            ended = await job.cancel()
            events = [event.type async for event in job.events()]
            listed = [each.id async for each in client.jobs.list()]
            return {"sha256": dataset.sha256, "status": ended.status, "events": events, "listed": listed, "id": job.id}

    with bad_network(api.address, dice(5)) as network:
        found = asyncio.run(use(network.url))
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert (found["status"], found["listed"]) == ("cancelled", [found["id"]])
    assert found["events"]


def test_a_prediction_that_takes_long_is_asked_for_again(api: Api, client: Client, tmp_path: Path) -> None:
    model = client.models.get(add_model(api.database, api.storage, tmp_path))
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (40, 30)).save(picture, "PNG")

    def answer() -> None:
        held = None
        while held is None:
            time.sleep(0.05)
            with api.database.write() as unit:
                held = unit.predictions.claim("w-1")
        time.sleep(0.3)
        with api.database.write() as unit:
            detection = {"score": 0.9, "box": [1, 2, 3, 4], "segmentation": {"size": [30, 40], "counts": "abc"}}
            result = [{"prompt": "pallet", "presence": 0.9, "detections": [detection]}]
            unit.predictions.succeed(held.id, held.epoch, result=result)

    thread = threading.Thread(target=answer)
    thread.start()
    found = model.predict(picture.getvalue(), "pallet", boxes=[(1, 2, 3.5, 4)], min_score=0.3)
    thread.join()
    assert found.status == "succeeded"
    assert found.results is not None
    assert found.results[0].detections[0].score == 0.9
    with pytest.raises(LocalFileError, match="cannot be read"):
        model.predict(tmp_path / "gone.jpg", "pallet")
