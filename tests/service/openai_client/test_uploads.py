"""Large files in parts, as OpenAI's client sends them."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI

from tests.service.conftest import Api, assert_problem
from tests.service.openai_client.conftest import connected, refused

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = os.urandom(10_000)
MIME = "application/zip"


def begin(client: OpenAI, **values: Any) -> openai.types.Upload:
    given: dict[str, Any] = {"bytes": len(CONTENT), "filename": "dir/a.zip", "mime_type": MIME, "purpose": "fine-tune"}
    return client.uploads.create(**given | values)


def test_a_large_file_in_parts(api: Api, client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "pallets.tar.gz"
    path.write_bytes(CONTENT)
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/gzip",
        purpose="fine-tune",
        part_size=3000,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(CONTENT), "pallets.tar.gz")
    assert upload.file is not None
    assert upload.file == client.files.retrieve(upload.file.id)
    assert client.files.content(upload.file.id).content == CONTENT
    dataset = api.client.get(f"/v1/datasets/{upload.file.id}").json()
    assert dataset["source"]["upload_id"] == upload.id
    assert [ring[1] for ring in api.queue.rings] == [upload.file.id]
    assert api.storage.list("uploads") == []


def test_parts_are_put_together_as_they_are_named(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    assert (upload.status, upload.filename, upload.file) == ("pending", "a.zip", None)
    rest = client.uploads.parts.create(upload.id, data=CONTENT[7000:])
    lost = client.uploads.parts.create(upload.id, data=CONTENT[:7000])
    first = client.uploads.parts.create(upload.id, data=CONTENT[:7000])  # as after an answer that was lost
    assert len({rest.id, lost.id, first.id}) == 3
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id, "part_x", rest.id])
    assert refused(error) == ("/part_ids/1", "part_not_found")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id])
    assert refused(error) == ("/part_ids", "wrong_length")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id, rest.id], md5="0" * 32)
    assert refused(error) == ("/md5", "md5_mismatch")
    assert api.storage.list("datasets") == []
    done = client.uploads.complete(upload.id, part_ids=[first.id, rest.id])
    assert done.file is not None
    assert client.files.content(done.file.id).content == CONTENT
    assert client.uploads.complete(upload.id, part_ids=[first.id, rest.id]) == done
    assert len(list(client.files.list())) == 1
    assert api.storage.list("uploads") == []
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["file"]["id"] == done.file.id
    client.files.delete(done.file.id)
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["file"] is None


def test_parts_and_completions_that_come_together_make_one_dataset(live: Api) -> None:
    with connected(live) as client:
        upload = begin(client)
        pieces = [CONTENT[start : start + 1000] for start in range(0, len(CONTENT), 1000)]
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece), pieces))
            part_ids = [part.id for part in parts]
            done = list(pool.map(lambda _: client.uploads.complete(upload.id, part_ids=part_ids), range(4)))
        assert done == [done[0]] * 4
        [file] = client.files.list()
        assert file == done[0].file
        assert client.files.content(file.id).content == CONTENT
        assert live.storage.list("uploads") == []
        assert len(live.storage.list("datasets")) == 1


def test_an_upload_that_is_cancelled_is_gone(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    client.uploads.parts.create(upload.id, data=CONTENT[:10])
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert api.storage.list("uploads") == []
    for act in (
        lambda: client.uploads.cancel(upload.id),
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
        lambda: client.uploads.complete(upload.id, part_ids=["part_x"]),
    ):
        with pytest.raises(openai.NotFoundError):
            act()


def test_a_complete_upload_is_not_cancelled_and_takes_no_parts(client: OpenAI) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=CONTENT)
    client.uploads.complete(upload.id, part_ids=[part.id])
    for act in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x")):
        with pytest.raises(openai.ConflictError):
            act()


def test_an_upload_that_expires(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    api.clock.advance(api.settings.upload_retention_s)
    with pytest.raises(openai.APIStatusError) as error:
        client.uploads.parts.create(upload.id, data=b"x")
    assert error.value.status_code == 410
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["status"] == "expired"


def test_parts_hold_no_more_than_a_client_that_tries_again_sends(api: Api, client: OpenAI) -> None:
    upload = begin(client, bytes=10)
    for _ in range(3):
        client.uploads.parts.create(upload.id, data=CONTENT[:10])
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.parts.create(upload.id, data=CONTENT[:1])
    assert refused(error)[1] == "too_many_bytes"
    assert len(api.storage.list("uploads")) == 3


def test_a_part_has_64_mib_at_most(client: OpenAI) -> None:
    upload = begin(client, bytes=2**27)
    client.uploads.parts.create(upload.id, data=bytes(2**26))
    with pytest.raises(openai.APIStatusError) as error:
        client.uploads.parts.create(upload.id, data=bytes(2**26 + 1))
    assert error.value.status_code == 413


@pytest.mark.parametrize(
    ("values", "pointer", "code"),
    [
        ({"purpose": "vision"}, "/purpose", "literal_error"),
        ({"mime_type": "application/jsonl"}, "/mime_type", "literal_error"),
        ({"bytes": 0}, "/bytes", "greater_than_equal"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "/expires_after", "extra_forbidden"),
    ],
)
def test_uploads_that_are_refused(client: OpenAI, values: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        begin(client, **values)
    assert refused(error) == (pointer, code)


def test_the_two_kinds_of_uploads_do_not_mix(api: Api, client: OpenAI) -> None:
    theirs = begin(client)
    put = api.client.put(f"/v1/uploads/{theirs.id}/parts/1", content=CONTENT)
    assert_problem(put, 409, "state_conflict")
    problem = assert_problem(api.client.post(f"/v1/uploads/{theirs.id}/complete"), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/part_ids"
    ours = api.client.post("/v1/uploads", json={"filename": "a.zip", "bytes": 4}).json()
    for act in (lambda: client.uploads.parts.create(ours["id"], data=b"x"), lambda: client.uploads.cancel(ours["id"])):
        with pytest.raises(openai.ConflictError):
            act()
    for body, pointer in (({"part_ids": ["part_x"]}, "/part_ids"), ({"md5": "0" * 32}, "")):
        problem = assert_problem(
            api.client.post(f"/v1/uploads/{ours['id']}/complete", json=body), 422, "invalid_request"
        )
        assert problem["errors"][0]["pointer"] == pointer
    assert api.client.delete(f"/v1/uploads/{theirs.id}").status_code == 204
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel(theirs.id)
