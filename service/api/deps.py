"""What routes are given: services of the application, transactions, headers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Header, Path, Request

from service.api.authentication import authorised
from service.api.exposition import Exposition
from service.api.job_creation import JobCreation
from service.api.job_views import JobWatch
from service.api.queries import require_known_query
from service.api.rates import Rates
from service.api.waiting import PredictionWatch
from service.shared.clock import Clock
from service.shared.queue import Queue
from service.shared.settings import Settings
from service.shared.storage import Storage
from service.shared.unit_of_work import Database, UnitOfWork
from service.shared.vault import Vault
from service.usecases.access import Access
from service.usecases.following import Broadcaster


@dataclass(frozen=True)
class Services:
    """What `create_app` wires, once per process."""

    settings: Settings
    database: Database
    storage: Storage
    queue: Queue
    clock: Clock
    creation: JobCreation
    watch: JobWatch
    broadcaster: Broadcaster
    predictions: PredictionWatch
    vault: Vault
    exposition: Exposition
    rates: Rates


async def access_to(request: Request) -> Access:
    """What the request may do, if it may do what it asks for and asks for nothing that there is not."""
    access = await authorised(request)
    require_known_query(request)
    return access


async def services(request: Request) -> Services:
    """What the routes work with, if the request may use it; its database shows the project of the key alone."""
    access = await access_to(request)  # a call, not a dependency: each of those costs every request a tenth more
    found: Services = request.app.state.services
    return found if access.project is None else replace(found, database=found.database.of(access.project))


def write_unit(found: Annotated[Services, Depends(services)]) -> Iterator[UnitOfWork]:
    with found.database.write() as unit:
        yield unit


def read_unit(found: Annotated[Services, Depends(services)]) -> Iterator[UnitOfWork]:
    with found.database.read() as unit:
        yield unit


RequestAccess = Annotated[Access, Depends(access_to)]
AppServices = Annotated[Services, Depends(services)]
# With scope "function" the commit happens before the answer is sent: a commit that fails is never a 2xx.
WriteUnit = Annotated[UnitOfWork, Depends(write_unit, scope="function")]
ReadUnit = Annotated[UnitOfWork, Depends(read_unit, scope="function")]
JobId = Annotated[str, Path(max_length=64, description="Id of the job.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Repeating a request with the same key creates nothing new and gets the first answer again.",
        examples=["5f1c0b9e-try-1"],
    ),
]
