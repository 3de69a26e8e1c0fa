"""Sample images of a job: image, truth, base and tuned, worst first."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import RequestConditions
from service.api.deps import AppServices, ReadUnit
from service.api.downloads import download_responses, of_row, send, stored
from service.api.errors import problem_responses
from service.api.schemas.samples import SampleList, sample_list
from service.usecases import samples as usecase

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(max_length=64, description="The job.")]


@router.get("/{job_id}/samples", responses=problem_responses(404, 503))
def list_samples(unit: ReadUnit, found: AppServices, job_id: JobId) -> SampleList:
    """Validation images on which the tuned model does worst, each as the bare image, with the truth, base and tuned."""
    return sample_list(job_id, usecase.list_samples(unit, found.storage, job_id))


@router.head("/{job_id}/samples/{position}/{panel}", include_in_schema=False)
@router.get(
    "/{job_id}/samples/{position}/{panel}",
    response_class=StreamingResponse,
    responses=download_responses("image/jpeg"),
)
def download_sample(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    conditions: RequestConditions,
    job_id: JobId,
    position: Annotated[int, Path(ge=0, lt=1000, description="In the list of samples.")],
    panel: Annotated[Literal["image", "truth", "base", "tuned"], Path(description="What is drawn on the image.")],
) -> Response:
    """One panel of a sample as a JPEG picture."""
    file = usecase.get_sample(unit, job_id, position, panel)
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{position}-{panel}.jpg",
        media_type="image/jpeg",
        created_at=file.created_at,
        inline=True,
    )
    return send(request, conditions, download)
