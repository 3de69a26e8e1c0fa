from __future__ import annotations

import contextlib
import io
import shutil
import threading
import time
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import update

from service.main import create_app
from service.server import Server, configured
from service.shared import log as logs
from service.shared.db.migrate import open_engine, upgrade
from service.shared.db.models import Base, Dataset, Job, SchemaFloor
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.unit_of_work import Database
from service.usecases import access
from service.usecases.access import EVERYTHING, Scope
from tests.servers import fresh_database, postgres_server_url, redis_url, s3  # noqa: F401
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from service.api.job_views import JobWatch
    from service.shared.storage import Storage


class FakeClock:
    """Time that only the test moves; starts at a fixed instant."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds


class FakeQueue:
    """A doorbell that remembers who rang; `down` makes it a broker that is not there."""

    def __init__(self) -> None:
        self.rings: list[tuple[Task, str]] = []
        self.down = False
        self.unfetched = 0

    def ring(self, task: Task, *resource_ids: str) -> bool:
        if not self.down:
            self.rings += [(task, resource_id) for resource_id in resource_ids]
        return not self.down

    def depth(self, task: Task) -> int | None:
        return None if self.down else self.unfetched

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture(scope="session", autouse=True)
def _json_logs() -> None:
    logs.configure("ERROR", "test")


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a migrated installation on each database."""
    data_dir = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        url = ""
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server_url")))
        settings = Settings(data_dir=data_dir, database_url=url)
        upgrade(settings)
        yield settings


@pytest.fixture
def settings(installation: Settings) -> Settings:
    """Settings of an installation on each database, empty at the start of every test."""
    empty(installation)
    return installation


@pytest.fixture
def database(settings: Settings, clock: FakeClock, queue: FakeQueue) -> Iterator[Database]:
    database = Database(settings, clock, queue)
    yield database
    database.close()


def empty(settings: Settings) -> None:
    """Delete every row and every stored file."""
    engine = open_engine(settings)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != SchemaFloor.__tablename__:  # which is part of the schema
                connection.execute(table.delete())
    engine.dispose()
    kept = ("datasets", "uploads", "jobs", "exports", "predictions", "comparisons")
    for folder in (*(settings.storage_dir / name for name in kept), settings.staging_dir):
        shutil.rmtree(folder, ignore_errors=True)


def add_dataset(database: Database, state: DatasetState = DatasetState.READY) -> str:
    """Id of a new dataset in `state`."""
    with database.write() as unit:
        dataset = Dataset(
            id=new_id("ds"),
            name="pallets",
            filename="pallets.zip",
            sha256="0" * 64,
            size_bytes=3,
            storage_key="datasets/x/archive",
        )
        unit.datasets.add(dataset)
        if state is not DatasetState.PROCESSING:
            row = update(Dataset).where(Dataset.id == dataset.id)
            unit.session.execute(row.values(state=state, report={"status": state}, next_publish_at=None))
    return dataset.id


def new_job(dataset_id: str, **values: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": new_id("job"),
        "name": "pallets-v1",
        "state": JobState.QUEUED,
        "base_model": "sam3-tiny",
        "dataset_id": dataset_id,
        "config": {},
        "resolved": {"config": {}},
        "seed": 42,
        "priority": 50,
        "max_runtime_s": 3600,
        "max_attempts": 3,
        "tags": [],
        "labels": {},
    }
    return Job(**(defaults | values))


def add_job(database: Database, dataset_id: str | None = None, **values: Any) -> str:
    """Id of a new job, queued unless `state` says otherwise."""
    job = new_job(dataset_id or add_dataset(database), **values)
    with database.write() as unit:
        unit.jobs.add(job)
    return job.id


@dataclass(frozen=True)
class Api:
    """A served application, its client, and what lies behind it."""

    client: httpx.Client
    address: tuple[str, int]
    settings: Settings
    database: Database
    storage: Storage
    queue: FakeQueue
    clock: FakeClock
    watch: JobWatch
    app: FastAPI


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[Api]:
    """The application behind a real HTTP server on a free port of this machine."""
    clock, queue = FakeClock(), FakeQueue()
    app = create_app(settings, clock=clock, queue=queue)
    server = Server(configured(app, port=0, timeout_keep_alive=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    address = server.servers[0].sockets[0].getsockname()
    found = app.state.services
    try:
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=30) as client:
            yield Api(client, address, settings, found.database, found.storage, queue, clock, found.watch, app)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("api"), upload_idle_timeout_s=1, webhook_tests_per_minute=10_000
    )
    upgrade(settings)
    with served(settings) as api:
        yield api


@pytest.fixture
def api(served_api: Api) -> Api:
    """The application on SQLite, empty, with its doorbell silent."""
    empty(served_api.settings)
    served_api.queue.rings.clear()
    served_api.queue.down = False
    return served_api


FAST_STREAMS = {
    "stream_poll_interval_s": 0.02,
    "stream_heartbeat_s": 0.2,
    "max_streams": 40,
    "stream_stall_timeout_s": 0.5,
}


@pytest.fixture
def live(settings: Settings) -> Iterator[Api]:
    """The application on each database, with short times; nobody follows when it is over."""
    with served(settings.model_copy(update=FAST_STREAMS)) as api:
        yield api
        broadcaster = api.app.state.services.broadcaster
        wait_until(lambda: broadcaster.followers == 0, 10)
        wait_until(lambda: broadcaster._poller is None, 10)
        assert not broadcaster._topics


def body(**values: Any) -> dict[str, Any]:
    """A job that the service accepts once `dataset_id` is right."""
    return {"name": "pallets-v1", "base_model": "sam3-tiny"} | values


def zip_bytes(content: bytes = b"{}") -> bytes:
    """A small zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train/_annotations.coco.json", content)
    return buffer.getvalue()


def upload(api: Api, content: bytes | None = None, **request: Any) -> httpx.Response:
    files = {"file": ("pallets.zip", zip_bytes() if content is None else content, "application/zip")}
    return api.client.post("/v1/datasets", files=files, **request)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a complete problem with this status and code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"]
    assert problem["error"]["code"] == code
    assert problem["error"]["message"] == problem["detail"]
    return problem


def make_key(api: Api, project: str | None, *scopes: Scope) -> str:
    """The secret of a new key."""
    wanted = scopes or (Scope.READ, Scope.WRITE)
    with api.database.write() as unit:
        return access.create_key(unit, EVERYTHING, name="k", project=project, scopes=wanted, lasts_s=None).secret
