"""The API application: the one place that wires settings, database, storage, queue and routes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from sam3_lora.version import VERSION
from service.api import documentation, errors, messages, openapi_document
from service.api.authentication import Authentication
from service.api.deprecation import Deprecations
from service.api.deps import Services
from service.api.exposition import Exposition
from service.api.job_creation import JobCreation
from service.api.job_views import JobWatch
from service.api.middleware import RequestContext
from service.api.openai.routes import files, fine_tuning
from service.api.openai.routes import uploads as openai_uploads
from service.api.rates import Rates
from service.api.routes import (
    actions,
    api_keys,
    attempts,
    checkpoints,
    comparisons,
    datasets,
    estimates,
    evaluation,
    events,
    jobs,
    logs,
    metrics,
    models,
    operations,
    predictions,
    quotas,
    recipes,
    samples,
    sweeps,
    uploads,
    webhooks,
)
from service.api.waiting import PredictionWatch
from service.pages.site import add_pages
from service.shared.clock import Clock, SystemClock
from service.shared.queue import BackgroundQueue, CeleryQueue, Queue
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.shared.vault import Vault
from service.usecases.following import Broadcaster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.shared.settings import Settings

DESCRIPTION = """
LoRA fine-tuning of SAM3 on COCO-format data: upload a dataset, create a job, follow it, download the adapter.

Every path is also served without `/v1`. Errors are `application/problem+json`; quote their `request_id`.
Times are RFC 3339 in UTC.
"""
TAGS = [
    {"name": "datasets", "description": "Images with COCO annotations, checked before they are used."},
    {"name": "recipes", "description": "Base models, the configuration's schema and defaults, jobs to begin with."},
    {"name": "uploads", "description": "Large files in parts, in any order, with nothing lost when something breaks."},
    {"name": "jobs", "description": "Training runs."},
    {"name": "sweeps", "description": "Many jobs at once that try different values, and the best of them."},
    {"name": "checkpoints", "description": "Trained adapters: resumable downloads with checksums."},
    {"name": "models", "description": "Tuned models: ask them about images, take them away."},
    {"name": "comparisons", "description": "Two models on one dataset: which is the better one."},
    {"name": "access", "description": "API keys and what they allow, what projects may use and have used."},
    {"name": "webhooks", "description": "Signed messages about what happens, sent to a URL."},
    {
        "name": "OpenAI-compatible",
        "description": "The same datasets, uploads and jobs for OpenAI's clients, with only their `base_url` changed.",
    },
    {"name": "operations", "description": "Probes, metrics, version, and what works and waits."},
]

ROUTES = (
    jobs,  # asked for most often: routes are tried in this order
    datasets,
    uploads,
    recipes,
    actions,
    attempts,
    events,
    metrics,
    logs,
    evaluation,
    samples,
    estimates,
    sweeps,
    checkpoints,
    models,
    predictions,
    comparisons,
    api_keys,
    quotas,
    webhooks,
    operations,
    files,
    openai_uploads,
    fine_tuning,
)


def create_app(settings: Settings, *, clock: Clock | None = None, queue: Queue | None = None) -> FastAPI:
    """The application. The database must have been migrated (`service.shared.db.migrate.upgrade`)."""
    clock = clock or SystemClock()
    queue = queue or BackgroundQueue(CeleryQueue(settings, clock))
    database = Database(settings, clock, queue)
    broadcaster = Broadcaster(database, settings)
    storage = Storage(settings)
    exposition = Exposition(settings, database, storage, queue, broadcaster, clock)
    rates = Rates(settings.broker_url, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await rates.close()
        broadcaster.close()
        database.close()
        queue.close()

    app = FastAPI(
        title="SAM3 LoRA training service",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        servers=[{"url": "/v1"}, {"url": "/"}],
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `tracing` and `Exposition` do it
        openapi_url=None,  # `documentation` answers it, as the page that shows it
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        webhooks=messages.router,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = Services(
        settings=settings,
        database=database,
        storage=storage,
        queue=queue,
        clock=clock,
        creation=JobCreation(database, settings),
        watch=JobWatch(database, settings),
        broadcaster=broadcaster,
        predictions=PredictionWatch(database),
        vault=Vault(settings),
        exposition=exposition,
        rates=rates,
    )
    app.add_middleware(Deprecations)
    app.add_middleware(Authentication, database=database, settings=settings, clock=clock, rates=rates)
    app.add_middleware(RequestContext, exposition=exposition)
    errors.install(app)
    for module in ROUTES:
        app.include_router(module.router, prefix="/v1", include_in_schema=False)
    for module in ROUTES:
        app.include_router(module.router)
    app.include_router(documentation.router)
    add_pages(app)
    openapi_document.describe(app, keys_required=settings.require_keys)
    return app
