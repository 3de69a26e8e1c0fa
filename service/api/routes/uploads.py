"""Uploads in parts: a large file survives broken connections, and restarts on either side."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response

from service.api.answers import created, created_responses
from service.api.bodies import StrictJsonRoute, parse_json, read_json_body, validated
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services
from service.api.errors import problem_responses
from service.api.forms import plain_filename
from service.api.incoming import receive_bytes
from service.api.openai.schemas.uploads import (
    OpenAIUploadCreate,
    OpenAIUploadRead,
    UploadComplete,
    openai_upload_read,
)
from service.api.schemas.lists import Page, PageOf, page_of
from service.api.schemas.uploads import (
    UploadCreate,
    UploadListed,
    UploadPartRead,
    UploadRead,
    part_read,
    upload_listed,
    upload_read,
)
from service.shared.db.models import Upload
from service.shared.unit_of_work import UnitOfWork
from service.usecases import uploads as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=StrictJsonRoute)

UploadId = Annotated[
    str, Path(max_length=64, description="The upload.", examples=["upload_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
PartNumber = Annotated[int, Path(ge=1, le=usecase.MAX_PARTS, description="From 1 to the upload's `part_count`.")]
CREATE_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    {"$ref": "#/components/schemas/UploadCreate"},
                    {"$ref": "#/components/schemas/OpenAIUploadCreate"},
                ]
            }
        }
    },
}
PART_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
DIGEST_HEADERS = [
    {
        "name": "Content-Digest",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`sha-256=:Base64:` or `sha-512=:Base64:` of the part (RFC 9530), checked.",
    },
    {
        "name": "Content-MD5",
        "in": "header",
        "schema": {"type": "string"},
        "description": "Base64 of the part's MD5, checked.",
    },
]


@router.post(
    "",
    status_code=201,
    response_model=UploadRead | OpenAIUploadRead,
    responses={**created_responses(), **problem_responses(400, 403, 413, 415, 422, 503)},
    openapi_extra={"requestBody": CREATE_BODY},
)
async def create_upload(request: Request, found: AppServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Announce a file; send its parts next.

    With a `purpose` it is announced as OpenAI's clients do, and is to be a dataset. All that is said of such an upload
    has their form: its parts are POSTed in any size, and named in order at the end.
    """
    value = parse_json(await read_json_body(request))
    is_openai = isinstance(value, dict) and "purpose" in value
    body = validated(OpenAIUploadCreate, value) if is_openai else validated(UploadCreate, value)
    return created(await to_thread.run_sync(_create, found, body, idempotency_key), {})


@router.get("", responses=problem_responses(404, 422, 503))
def list_uploads(unit: ReadUnit, query: PageOf) -> Page[UploadListed]:
    """Uploads, newest first, until they expire: to find one whose id was lost, which counts as stored meanwhile."""
    rows, has_more = unit.uploads.list(**query.window())
    now = unit.clock.now()
    return page_of(rows, has_more, lambda upload: upload_listed(upload, now), lambda read: read.id)


@router.get("/{upload_id}", responses=problem_responses(404, 422, 503))
def get_upload(unit: ReadUnit, upload_id: UploadId) -> UploadRead | OpenAIUploadRead:
    """Which parts have arrived; of an upload with a `purpose`, how it stands."""
    return _read(unit, unit.uploads.get(upload_id))


@router.put(
    "/{upload_id}/parts/{number}",
    responses=problem_responses(400, 404, 408, 409, 410, 422, 503, 507),
    openapi_extra={"requestBody": PART_BODY, "parameters": DIGEST_HEADERS},
)
async def put_part(request: Request, found: AppServices, upload_id: UploadId, number: PartNumber) -> UploadPartRead:
    """Send a part: exactly `part_bytes`, the last one what is left. Sent again, it replaces the earlier one."""
    size_bytes = await to_thread.run_sync(_part_size, found, upload_id, number)
    async with receive_bytes(
        request,
        found.settings.staging_dir,
        size_bytes=size_bytes,
        idle_timeout_s=found.settings.upload_idle_timeout_s,
    ) as path:
        part = await to_thread.run_sync(usecase.store_part, found.database, found.storage, upload_id, number, path)
    return part_read(part)


@router.post("/{upload_id}/complete", responses=problem_responses(400, 404, 409, 410, 413, 415, 422, 503, 507))
def complete_upload(
    found: AppServices,
    upload_id: UploadId,
    body: UploadComplete = UploadComplete(),  # noqa: B008 - immutable
) -> UploadRead | OpenAIUploadRead:
    """Put the parts together and check the whole; may be repeated. Takes seconds for each gigabyte.

    An upload with a `purpose` needs a body, which names its parts in order, and becomes a dataset: its `file`.
    """
    assembly = None if body.part_ids is None else usecase.Assembly(body.part_ids, body.md5)
    upload = usecase.complete_upload(found.database, found.storage, upload_id, assembly)
    with found.database.read() as unit:
        return _read(unit, upload)


@router.delete("/{upload_id}", status_code=204, responses=problem_responses(404, 422, 503))
def remove_upload(found: AppServices, upload_id: UploadId) -> None:
    """Give an upload up. Datasets that were made of it stay."""
    usecase.discard_upload(found.database, found.storage, upload_id)


def _create(found: Services, body: UploadCreate | OpenAIUploadCreate, idempotency_key: str | None) -> Answer:
    filename = plain_filename(body.filename)
    if isinstance(body, UploadCreate):
        spec = usecase.UploadSpec(filename, body.bytes, body.sha256, body.part_bytes)
    else:
        spec = usecase.UploadSpec(filename, body.bytes, part_bytes=usecase.PART_BYTES, purpose=body.purpose)
    with found.database.write() as unit:

        def make() -> Answer:
            upload = usecase.create_upload(unit, found.settings, spec)
            return Answer(f"/v1/uploads/{upload.id}", _read(unit, upload).model_dump(mode="json"))

        request_sha256 = fingerprint(body.model_dump(mode="json"))
        return answer_once(unit, "uploads.create", idempotency_key, request_sha256, make)


def _read(unit: UnitOfWork, upload: Upload) -> UploadRead | OpenAIUploadRead:
    """The upload in the form in which it was announced."""
    now = unit.clock.now()
    if upload.purpose is None:
        return upload_read(upload, unit.uploads.parts(upload.id), now)
    dataset = None if upload.dataset_id is None else unit.datasets.find(upload.dataset_id)
    return openai_upload_read(upload, dataset, now)


def _part_size(found: Services, upload_id: str, number: int) -> int:
    with found.database.read() as unit:
        return usecase.part_size(unit, upload_id, number)
