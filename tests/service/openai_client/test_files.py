"""Files, as OpenAI's client creates, lists and reads them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import update

from service.shared.db.models import Dataset
from service.shared.states import DatasetState
from tests.service.conftest import Api, add_dataset, add_job, zip_bytes
from tests.service.openai_client.conftest import refused

if TYPE_CHECKING:
    pass


def test_a_file_is_a_dataset(api: Api, client: OpenAI) -> None:
    content = zip_bytes()
    file = client.files.create(file=("pallets.zip", content), purpose="fine-tune")
    assert (file.status, file.bytes, file.filename) == ("uploaded", len(content), "pallets.zip")
    dataset = api.client.get(f"/v1/datasets/{file.id}").json()
    assert (dataset["name"], dataset["sha256"]) == ("pallets.zip", hashlib.sha256(content).hexdigest())
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    part = client.files.with_raw_response.content(file.id, extra_headers={"Range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, content[2:10])
    head = api.client.head(f"/v1/files/{file.id}/content")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
    assert part.headers["content-disposition"] == f'attachment; filename="{file.id}.zip"'
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert api.client.get(f"/v1/datasets/{file.id}").status_code == 404


def test_members_of_a_dataset_that_openai_does_not_have(api: Api, client: OpenAI) -> None:
    sha256 = hashlib.sha256(zip_bytes()).hexdigest()
    extra = {"name": "Paletten", "sha256": sha256}
    file = client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_body=extra)
    assert api.client.get(f"/v1/datasets/{file.id}").json()["name"] == "Paletten"
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_body={"sha256": "0" * 64})
    assert refused(error) == ("/sha256", "sha256_mismatch")


def test_files_that_are_refused(client: OpenAI) -> None:
    archive = ("a.zip", zip_bytes())
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=archive, purpose="batch")
    assert refused(error) == ("/purpose", "literal_error")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=archive, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert refused(error)[1] == "extra_forbidden"
    with pytest.raises(openai.APIStatusError) as other:
        client.files.create(file=("a.jsonl", b'{"prompt": "x"}'), purpose="fine-tune")
    assert other.value.status_code == 415
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("state", "values", "status", "details"),
    [
        (DatasetState.PROCESSING, {"error": None}, "uploaded", None),
        (DatasetState.READY, {"report": {"issues": []}}, "processed", None),
        (
            DatasetState.INVALID,
            {
                "report": {
                    "summary": {"errors": 12},
                    "issues": [
                        {"severity": "warning", "file": None, "message": "w"},
                        {"severity": "error", "file": None, "message": "no annotations"},
                        {"severity": "error", "file": "train.json", "message": "no such image"},
                    ],
                }
            },
            "error",
            "12 errors: archive: no annotations; train.json: no such image. All of them: /v1/datasets/{}/validation",
        ),
        (
            DatasetState.FAILED,
            {"error": {"code": "internal", "message": "It broke.", "hint": "Again.", "retryable": True}},
            "error",
            "It broke. Again.",
        ),
    ],
)
def test_what_a_files_status_tells_of_the_dataset(
    api: Api, client: OpenAI, state: DatasetState, values: dict[str, Any], status: str, details: str | None
) -> None:
    dataset = add_dataset(api.database, state)
    with api.database.write() as unit:
        unit.session.execute(update(Dataset).where(Dataset.id == dataset).values(**values))
    file = client.files.retrieve(dataset)
    assert (file.status, file.status_details) == (status, details and details.format(dataset))
    assert file.model_extra == {"native": {"status": state, "url": f"/v1/datasets/{dataset}"}}
    if state is not DatasetState.PROCESSING:
        assert client.files.wait_for_processing(dataset) == file


def test_files_are_listed_to_the_end(api: Api, client: OpenAI) -> None:
    made = [add_dataset(api.database) for _ in range(5)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="fine-tune")] == made
    page = client.files.list(limit=2, after=made[3])
    assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
    assert [file.id for file in client.files.list(limit=10_000)] == made[::-1]
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.list(purpose="fine-tune-results")
    assert refused(error) == ("/query/purpose", "literal_error")


def test_a_page_has_a_hundred_items_whatever_is_asked_for(api: Api, client: OpenAI) -> None:
    dataset = add_dataset(api.database)
    for _ in range(101):
        add_job(api.database, dataset)
    page = client.fine_tuning.jobs.list(limit=5000)
    assert (len(page.data), page.has_more) == (100, True)
    assert len(list(page)) == 101


def test_a_conflict_is_not_tried_again(api: Api, client: OpenAI) -> None:
    dataset = add_dataset(api.database)
    add_job(api.database, dataset)
    with pytest.raises(openai.ConflictError) as error:
        client.files.delete(dataset)
    assert error.value.code == "dataset_in_use"
    assert error.value.request.headers["x-stainless-retry-count"] == "0"
    assert error.value.request_id == error.value.response.json()["request_id"]


def test_an_idempotency_key_is_of_one_door(api: Api, client: OpenAI) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = [
        client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_headers=headers) for _ in range(2)
    ]
    assert answers[0] == answers[1]
    other = api.client.post("/v1/datasets", files={"file": ("a.zip", zip_bytes())}, headers=headers).json()
    assert other["object"] == "dataset"
    assert other["id"] != answers[0].id
