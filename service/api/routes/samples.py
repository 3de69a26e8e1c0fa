"""Sample images of a job: image, truth, base and tuned, worst first, also as they were seen after each epoch."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import RequestConditions
from service.api.deps import AppServices, ReadUnit
from service.api.downloads import download_responses, of_row, send, stored
from service.api.errors import problem_responses
from service.api.schemas.samples import SampleList, sample_list
from service.usecases import samples as usecase

router = APIRouter(prefix="/jobs", tags=["jobs"])

Epoch = Annotated[
    int | None,
    Query(
        ge=1,
        lt=2**31,
        description="As the model saw them after this epoch, always the same images. Without: at the end of the job.",
    ),
]
JobId = Annotated[str, Path(max_length=64, description="The job.")]


@router.get(
    "/{job_id}/samples",
    responses=problem_responses(404, 503),
    summary="Validation images on which the tuned model does worst",
)
def list_samples(unit: ReadUnit, found: AppServices, job_id: JobId, epoch: Epoch = None) -> SampleList:
    """Validation images on which the tuned model does worst, each as the bare image, with the truth, base and tuned.

    With `epoch`, as they were after that one: a few images, always the same, those on which the base does worst.
    """
    samples = usecase.list_samples(unit, found.storage, job_id, epoch)
    return sample_list(job_id, samples, usecase.epochs_with_samples(unit, job_id))


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
    epoch: Epoch = None,
) -> Response:
    """One panel of a sample as a JPEG picture."""
    file = usecase.get_sample(unit, job_id, position, panel, epoch)
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{position}-{panel}.jpg" if epoch is None else f"epoch-{epoch}-{position}-{panel}.jpg",
        media_type="image/jpeg",
        created_at=file.created_at,
        inline=True,
    )
    return send(request, conditions, download)
