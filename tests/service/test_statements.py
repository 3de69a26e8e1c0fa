"""Lists ask the database as often for many items as for few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from service.shared.states import DatasetState, JobState
from service.shared.webhooks import EventType
from tests.service.conftest import Api, add_dataset, add_job
from tests.service.results import add_comparison, add_model, finish_comparison
from tests.service.webhooks import add_endpoint, deliveries

if TYPE_CHECKING:
    from pathlib import Path

FEW, MANY = 2, 12


def statements(api: Api, path: str, items: int) -> int:
    """Statements that the request takes; it has to answer with so many items."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(api.database.engine, "before_cursor_execute", note)
    try:
        answer = api.client.get(path)
    finally:
        event.remove(api.database.engine, "before_cursor_execute", note)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == items
    return len(seen)


@pytest.mark.parametrize(
    "listed", ["datasets", "jobs", "models", "comparisons", "webhook_endpoints", "files", "fine_tuning/jobs"]
)
def test_a_list_takes_the_same_statements_however_long(api: Api, tmp_path: Path, listed: str) -> None:
    counts = []
    for count in (FEW, MANY):
        while len(api.client.get(f"/v1/{listed}?limit=100").json()["data"]) < count:
            if listed == "models":
                add_model(api.database, api.storage, tmp_path)
            elif listed == "webhook_endpoints":
                add_endpoint(api.database, api.settings)
            elif listed == "comparisons":
                model_id = add_model(api.database, api.storage, tmp_path)
                add_comparison(api.database, api.settings, ("sam3-tiny", model_id))
                finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))
            else:
                add_job(api.database, add_dataset(api.database, DatasetState.READY))
        counts.append(statements(api, f"/v1/{listed}?limit={count}", count))
    assert counts[0] == counts[1] <= 12


def test_only_jobs_that_wait_for_a_check_ask_who_checks(api: Api) -> None:
    dataset = add_dataset(api.database, DatasetState.PROCESSING)
    add_job(api.database)
    queued = statements(api, "/v1/jobs", 1)
    for count in (1, 2):
        add_job(api.database, dataset, state=JobState.VALIDATING_FILES)
        assert statements(api, "/v1/jobs", 1 + count) == queued + 1


def test_children_of_a_job_take_the_same_statements_however_many(api: Api, tmp_path: Path) -> None:
    model = api.client.get(f"/v1/models/{add_model(api.database, api.storage, tmp_path)}").json()
    job = f"/v1/jobs/{model['job_id']}"
    few = {name: statements(api, f"{job}/{name}", count) for name, count in (("events", 3), ("checkpoints", 1))}
    assert all(count <= 4 for count in few.values()), few
    assert statements(api, f"{job}/attempts", 1) <= 4
    same = f"/v1/fine_tuning/jobs/{model['job_id']}"
    assert statements(api, f"{same}/events", 3) <= 4
    assert statements(api, f"{same}/checkpoints", 1) <= 5


def test_deliveries_of_an_endpoint_take_the_same_statements_however_many(api: Api) -> None:
    endpoint_id, _ = add_endpoint(api.database, api.settings, events=[EventType.JOB_QUEUED])
    counts = []
    for count in (FEW, MANY):
        while len(deliveries(api.database, endpoint_id)) < count:
            add_job(api.database)
        counts.append(statements(api, f"/v1/webhook_endpoints/{endpoint_id}/deliveries?limit={count}", count))
    assert counts[0] == counts[1] <= 4
