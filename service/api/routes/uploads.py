"""Uploads in parts: a large file survives broken connections, and restarts on either side."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response

from service.api.answers import created
from service.api.bodies import StrictJsonRoute
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services, WriteUnit
from service.api.errors import problem_responses
from service.api.forms import plain_filename
from service.api.incoming import receive_bytes
from service.api.schemas.uploads import UploadCreate, UploadPartRead, UploadRead, part_read, upload_read
from service.usecases import uploads as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=StrictJsonRoute)

UploadId = Annotated[str, Path(max_length=64)]
PartNumber = Annotated[int, Path(ge=1, le=usecase.MAX_PARTS, description="From 1 to the upload's `part_count`.")]
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


@router.post("", status_code=201, response_model=UploadRead, responses=problem_responses(400, 403, 413, 415, 422, 503))
def create_upload(
    unit: WriteUnit, found: AppServices, body: UploadCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Announce a file; send its parts next."""
    filename = plain_filename(body.filename)
    spec = usecase.UploadSpec(filename, body.bytes, body.sha256, body.part_bytes)

    def make() -> Answer:
        upload = usecase.create_upload(unit, found.settings, spec)
        read = upload_read(upload, [], unit.clock.now())
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint(body.model_dump(mode="json"))
    return created(answer_once(unit, "uploads.create", idempotency_key, request_sha256, make), {})


@router.get("/{upload_id}", responses=problem_responses(404, 422, 503))
def get_upload(unit: ReadUnit, upload_id: UploadId) -> UploadRead:
    """Which parts have arrived."""
    return upload_read(unit.uploads.get(upload_id), unit.uploads.parts(upload_id), unit.clock.now())


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


@router.post("/{upload_id}/complete", responses=problem_responses(404, 409, 410, 422, 503, 507))
def complete_upload(found: AppServices, upload_id: UploadId) -> UploadRead:
    """Put the parts together and check the whole; may be repeated. Takes seconds for each gigabyte."""
    upload = usecase.complete_upload(found.database, found.storage, upload_id)
    return upload_read(upload, [], found.clock.now())


@router.delete("/{upload_id}", status_code=204, responses=problem_responses(404, 422, 503))
def remove_upload(found: AppServices, upload_id: UploadId) -> None:
    """Give an upload up. Datasets that were made of it stay."""
    usecase.discard_upload(found.database, found.storage, upload_id)


def _part_size(found: Services, upload_id: str, number: int) -> int:
    with found.database.read() as unit:
        return usecase.part_size(unit, upload_id, number)
