"""The curves of a job."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.api.deps import JobId, ReadUnit
from service.api.errors import problem_responses
from service.api.negotiation import preferred
from service.api.response_headers import headers as described
from service.api.schemas.metrics import MetricsQuery, MetricsRead, metrics_csv, metrics_read
from service.usecases.metrics import read_metrics

router = APIRouter(prefix="/jobs/{job_id}/metrics", tags=["jobs"])

JSON, CSV = "application/json", "text/csv"
FORMATS = {"json": JSON, "csv": CSV}


@router.head("", include_in_schema=False)
@router.get(
    "",
    response_model=MetricsRead,
    responses={
        200: {
            "content": {CSV: {"schema": {"type": "string"}}},
            "headers": described("Vary", "Content-Disposition"),
        },
        **problem_responses(404, 422, 503),
    },
    summary="Metric series of the job",
)
def get_metrics(
    unit: ReadUnit,
    job_id: JobId,
    query: Annotated[MetricsQuery, Query()],
    accept: Annotated[str | None, Header(description="`text/csv`: one row for each point.")] = None,
) -> Response:
    """Metric series of the job, as JSON or, with `Accept: text/csv` or `format=csv`, one row for each point.

    `train/loss` and its parts `train/loss_...`, `train/lr`, `train/grad_norm`, `train/images_per_s`; of each validation
    `val/segm_mAP`, `val/bbox_mAP`, `val/cgF1` and others, and as `base/...` those of the untuned model; about every ten
    seconds `sys/mem_used_bytes` of the trainer, and `sys/gpu0/mem_used_bytes` and `sys/gpu0/utilization` of each GPU.
    """
    unit.jobs.get(job_id)
    metrics = read_metrics(
        unit,
        job_id,
        names=query.keys.split(",") if query.keys else (),
        after_step=query.after_step,
        before_step=query.before_step,
        max_points=query.max_points,
    )
    media_type = FORMATS[query.format] if query.format else preferred(accept, (JSON, CSV))
    headers = {"Vary": "Accept"}
    if media_type == JSON:
        return Response(metrics_read(job_id, metrics).model_dump_json(), 200, headers, JSON)
    headers["Content-Disposition"] = f'attachment; filename="{job_id}-metrics.csv"'
    return Response(metrics_csv(metrics), 200, headers, CSV)
