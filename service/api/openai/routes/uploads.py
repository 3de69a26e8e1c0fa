"""What OpenAI's uploads have beside those of this service (`service.api.routes.uploads`): parts of any size, cancel."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request

from service.api.deps import AppServices, Services
from service.api.errors import problem_responses
from service.api.forms import receive_form
from service.api.openai.schemas.lists import unix
from service.api.openai.schemas.uploads import OpenAIUploadPartRead, OpenAIUploadRead, openai_upload_read
from service.usecases import uploads as usecase

router = APIRouter(prefix="/uploads", tags=["OpenAI-compatible"])

UploadId = Annotated[
    str, Path(max_length=64, description="The upload.", examples=["upload_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
PART_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["data"],
                "additionalProperties": False,
                "properties": {"data": {"type": "string", "format": "binary", "description": "At most 64 MiB."}},
            }
        }
    },
}


@router.post(
    "/{upload_id}/parts",
    responses=problem_responses(400, 404, 408, 409, 410, 413, 415, 422, 503, 507),
    openapi_extra={"requestBody": PART_BODY},
)
async def add_upload_part(request: Request, found: AppServices, upload_id: UploadId) -> OpenAIUploadPartRead:
    """Send a part, of any size up to 64 MiB, to an upload with a `purpose`. Sent again, it is one more part."""
    max_bytes = await to_thread.run_sync(_largest_part, found, upload_id)
    async with receive_form(
        request,
        found.settings.staging_dir,
        known_fields=frozenset(),
        max_bytes=max_bytes,
        idle_timeout_s=found.settings.upload_idle_timeout_s,
        file_part="data",
    ) as file:
        part = await to_thread.run_sync(usecase.store_part, found.database, found.storage, upload_id, None, file.path)
    return OpenAIUploadPartRead(id=part.id, upload_id=upload_id, created_at=unix(found.clock.now()))


@router.post("/{upload_id}/cancel", responses=problem_responses(404, 409, 410, 422, 503))
def cancel_upload(found: AppServices, upload_id: UploadId) -> OpenAIUploadRead:
    """Give an upload with a `purpose` up before it is complete. It is gone then."""
    upload = usecase.discard_upload(found.database, found.storage, upload_id, only_pending=True)
    return openai_upload_read(upload, None, found.clock.now()).model_copy(update={"status": "cancelled"})


def _largest_part(found: Services, upload_id: str) -> int:
    with found.database.read() as unit:
        return usecase.largest_part(unit, upload_id)
