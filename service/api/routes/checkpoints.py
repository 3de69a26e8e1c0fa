"""Checkpoints: what one holds, and downloads that resume and can be verified."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import RequestConditions
from service.api.deps import AppServices, ReadUnit
from service.api.downloads import archived, download_responses, media_type_of, of_row, send, stored
from service.api.errors import problem_responses
from service.api.schemas.checkpoints import CheckpointRead, checkpoint_read
from service.shared.errors import NotFoundError

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])

CheckpointId = Annotated[
    str, Path(max_length=64, description="The checkpoint.", examples=["ckpt_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
FileName = Annotated[str, Path(max_length=200, description="One of its files.", examples=["adapter_model.safetensors"])]


@router.head("/{checkpoint_id}", include_in_schema=False)
@router.get("/{checkpoint_id}", responses=problem_responses(404, 503))
def get_checkpoint(unit: ReadUnit, checkpoint_id: CheckpointId) -> CheckpointRead:
    """One checkpoint, with the hashes of its files."""
    return checkpoint_read(unit.checkpoints.get(checkpoint_id))


@router.head("/{checkpoint_id}/files/{name}", include_in_schema=False)
@router.get(
    "/{checkpoint_id}/files/{name}",
    response_class=StreamingResponse,
    responses=download_responses(("application/octet-stream", "application/json")),
)
def download_file(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    conditions: RequestConditions,
    checkpoint_id: CheckpointId,
    name: FileName,
) -> Response:
    """Download one file, whole or from where an earlier download broke off.

    The entity tag is the SHA-256 of the whole file; `Repr-Digest` carries it too.
    """
    checkpoint, file = unit.checkpoints.get(checkpoint_id), unit.checkpoints.get_file(checkpoint_id, name)
    download = stored(
        found.storage, of_row(file), filename=name, media_type=media_type_of(name), created_at=checkpoint.created_at
    )
    return send(request, conditions, download)


@router.head("/{checkpoint_id}/archive", include_in_schema=False)
@router.get(
    "/{checkpoint_id}/archive",
    response_class=StreamingResponse,
    responses=download_responses("application/zip"),
    summary="Download all files of a checkpoint as a zip archive",
)
def download_archive(
    request: Request, unit: ReadUnit, found: AppServices, conditions: RequestConditions, checkpoint_id: CheckpointId
) -> Response:
    """Download all files as one zip archive, which resumes and is verified like a single file."""
    checkpoint = unit.checkpoints.get(checkpoint_id)
    if checkpoint.archive_sha256 is None:
        raise NotFoundError(f"Checkpoint {checkpoint_id} is of an older version: download its files one by one.")
    download = archived(
        found.storage,
        checkpoint.files,
        checkpoint.archive_sha256,
        filename=f"{checkpoint_id}.zip",
        created_at=checkpoint.created_at,
    )
    return send(request, conditions, download)
