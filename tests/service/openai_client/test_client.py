"""What is not about one noun: models, what is not offered, the asynchronous client, keys."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from service.usecases.access import Scope
from tests.service.conftest import Api, served, zip_bytes
from tests.service.openai_client.conftest import connected, refused
from tests.service.results import add_model
from tests.service.test_access import key

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = os.urandom(10_000)
MIME = "application/zip"


def test_models_are_listed_as_they_are(api: Api, client: OpenAI, tmp_path: Path) -> None:
    ids = [add_model(api.database, api.storage, tmp_path) for _ in range(2)]
    models = list(client.models.list())
    assert [model.id for model in models] == ids[::-1]
    assert client.models.retrieve(ids[0]).owned_by == "default"
    assert client.models.retrieve(ids[0]).created == int(api.clock.now().timestamp())
    client.delete(f"/models/{ids[0]}", cast_to=type(None))
    assert [model.id for model in client.models.list()] == [ids[1]]


def test_what_is_not_offered_is_not_found(api: Api, client: OpenAI, dataset: str) -> None:
    for act in (
        lambda: client.fine_tuning.alpha.graders.validate(grader={}),  # type: ignore[arg-type, typeddict-item]
        lambda: client.fine_tuning.checkpoints.permissions.list("ckpt_x"),
        lambda: client.batches.list(),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            act()
        assert error.value.code == "not_found"


def test_both_doors_open_without_a_version(api: Api, dataset: str) -> None:
    with OpenAI(base_url=str(api.client.base_url), api_key="none", _strict_response_validation=True) as client:
        job = client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset)
        assert client.fine_tuning.jobs.retrieve(job.id) == job
        assert [file.id for file in client.files.list()] == [dataset]


def test_the_asynchronous_client(api: Api) -> None:
    async def work() -> None:
        url = f"{api.client.base_url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", _strict_response_validation=True) as client:
            file = await client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune")
            upload = await client.uploads.upload_file_chunked(
                file=CONTENT, filename="b.zip", bytes=len(CONTENT), mime_type=MIME, purpose="fine-tune", part_size=4000
            )
            assert upload.file is not None
            made = await asyncio.gather(
                *(client.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id) for _ in range(5))
            )
            assert {job.status for job in made} == {"validating_files"}
            assert {job.id async for job in client.fine_tuning.jobs.list(limit=2)} == {job.id for job in made}
            assert [event.message async for event in client.fine_tuning.jobs.list_events(made[0].id)]
            assert (await client.fine_tuning.jobs.cancel(made[0].id)).status == "cancelled"

    asyncio.run(work())


def test_keys_scopes_and_limits_are_typed_errors(served_with_keys: Api) -> None:
    api = served_with_keys
    with connected(api, key(api, "a", Scope.READ)) as reader:
        assert list(reader.fine_tuning.jobs.list()) == []
        for act in (
            lambda: reader.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune"),
            lambda: reader.fine_tuning.jobs.create(model="sam3-tiny", training_file="ds_x"),
            lambda: reader.fine_tuning.jobs.cancel("job_x"),
            lambda: reader.uploads.cancel("upload_x"),
        ):
            with pytest.raises(openai.PermissionDeniedError) as denied:
                act()
            assert denied.value.code == "insufficient_scope"
    with served(api.settings.model_copy(update={"requests_per_minute": 1})) as strict:
        with connected(strict, "sam3_wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.files.list()
        with connected(strict, key(api, "a", Scope.READ)).with_options(max_retries=0) as busy:
            busy.files.list()
            with pytest.raises(openai.RateLimitError):
                busy.files.list()


def test_jobs_belong_to_the_project_of_the_key(served_with_keys: Api) -> None:
    api = served_with_keys
    with connected(api, key(api, "ours")) as ours, connected(api, key(api, "theirs")) as theirs:
        file = ours.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune")
        job = ours.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id)
        assert job.organization_id == "ours"
        upload = ours.uploads.upload_file_chunked(
            file=CONTENT, filename="b.zip", bytes=len(CONTENT), mime_type=MIME, purpose="fine-tune"
        )
        assert upload.file is not None
        assert list(theirs.files.list()) == list(theirs.fine_tuning.jobs.list()) == []
        for file_id in (file.id, upload.file.id, f"metrics_{job.id}"):
            with pytest.raises(openai.NotFoundError):
                theirs.files.content(file_id)
        with pytest.raises(openai.UnprocessableEntityError) as error:
            theirs.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id)
        assert refused(error) == ("/training_file", "dataset_not_found")
