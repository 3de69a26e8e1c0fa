"""What a job would take, before it is created."""

import asyncio
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from service.api.bodies import StrictJsonRoute
from service.api.deps import AppServices
from service.api.errors import problem_responses
from service.api.response_headers import headers
from service.api.schemas.estimates import EstimateRead, estimate_read
from service.api.schemas.jobs import JobCreate, job_spec
from service.usecases.estimates import Forecast, forecast, is_answered

router = APIRouter(prefix="/jobs/estimate", tags=["jobs"], route_class=StrictJsonRoute)

POLL_INTERVAL_S = 0.5
RETRY_AFTER_S = 5


@router.post(
    "",
    response_model=EstimateRead,
    responses={
        202: {
            "model": EstimateRead,
            "description": "Not worked out yet: ask again with the same body",
            "headers": headers("Retry-After"),
        },
        **problem_responses(400, 413, 415, 422, 503),
    },
    summary="Tell what a job would take, without creating it",
)
async def estimate_job(found: AppServices, body: JobCreate) -> Response:
    """Tell what a job with this body would adapt, need and take, without creating it.

    A worker works it out in some seconds, once for each base and configuration.
    """
    spec = job_spec(body, found.database.project)

    def ask(*, asked: bool = False) -> Forecast:
        with found.database.write() as unit:
            return forecast(unit, found.settings, spec, asked=asked)

    def look(estimate_id: str) -> bool:
        with found.database.read() as unit:
            return is_answered(unit, estimate_id)

    loop = asyncio.get_running_loop()
    deadline = loop.time() + found.settings.estimate_wait_s
    found_out = await to_thread.run_sync(ask)
    while found_out.numbers is None and loop.time() < deadline and not found.watch.closed:
        await asyncio.sleep(POLL_INTERVAL_S)
        if await to_thread.run_sync(look, found_out.estimate_id):
            found_out = await to_thread.run_sync(partial(ask, asked=True))
    content = estimate_read(found_out).model_dump(mode="json")
    if found_out.numbers is None:
        return JSONResponse(content, 202, {"Retry-After": str(RETRY_AFTER_S)})
    return JSONResponse(content)
