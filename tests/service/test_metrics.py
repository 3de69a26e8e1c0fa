"""Metrics: replaced where a step is repeated, thinned without losing a peak, as JSON and as CSV."""

from __future__ import annotations

import csv
import random
import threading

import psutil
import pytest
from sqlalchemy import insert, text

from service.shared.db.models import MetricPoint
from service.shared.db.repositories import metrics as repository
from service.shared.db.repositories.metrics import Series, StepValues
from service.shared.unit_of_work import Database
from tests.service.conftest import Api, add_job, assert_problem
from tests.service.test_logs import claimed


def insert_points(database: Database, values: dict[int, float | None], name: str = "train/loss") -> str:
    """Id of a new job with these values by step."""
    job_id = add_job(database)
    row = {"job_id": job_id, "name": name, "epoch": None, "created_at": database._clock.now()}
    with database.write() as unit:
        unit.session.execute(insert(MetricPoint), [row | {"step": step, "value": v} for step, v in values.items()])
    return job_id


def thinned(database: Database, job_id: str, max_points: int) -> dict[int, float | None]:
    with database.read() as unit:
        (series,) = unit.metrics.series(job_id)
        points = unit.metrics.points(job_id, series, max_points)
    assert [point.step for point in points] == sorted(point.step for point in points)
    return {point.step: point.value for point in points}


def test_a_repeated_step_is_replaced(database: Database) -> None:
    lease = claimed(database)
    with database.write() as unit:
        for step in (1, 2):
            unit.metrics.add(*lease, step=step, values={"a": float(step), "b": 1e-4}, training_epoch=0.5)
        unit.metrics.add(*lease, step=2, values={"a": float("nan")}, training_epoch=1.0)
        unit.metrics.add(*lease, step=2, values={}, training_epoch=1.0)
    with database.read() as unit:
        assert unit.metrics.series(lease[0]) == [Series("a", 2, 1, 1, 2), Series("b", 2, 0, 1, 2)]
        assert unit.metrics.series(lease[0], names=["b", "c"], after_step=1) == [Series("b", 1, 0, 2, 2)]
        assert unit.metrics.series(lease[0], before_step=2, names=["a"]) == [Series("a", 1, 0, 1, 1)]
    assert thinned(database, insert_points(database, {5: 1.0}), 5) == {5: 1.0}


def test_many_steps_are_stored_at_once_and_the_last_word_counts(database: Database) -> None:
    lease = claimed(database)
    name = "n" * 250  # kept as its first 200 characters
    steps = [
        StepValues(1, 0.1, {"a": 1.0, name: 1.0, "\ud800": 0.1 + 0.2}),
        StepValues(2**63 - 1, None, {"a": 5e-324, "b": float("inf")}),
        StepValues(1, 0.2, {"a": 2.0, name + "x": 2.0}),
    ]
    for _ in range(2):
        with database.write() as unit:
            unit.metrics.add_all(*lease, steps)
            unit.metrics.add_all(*lease, [])
    with database.read() as unit:
        found = {s.name: [*unit.metrics.points(lease[0], s, 10)] for s in unit.metrics.series(lease[0])}
    values = {name: [(point.step, point.epoch, point.value) for point in points] for name, points in found.items()}
    assert values == {
        "a": [(1, 0.2, 2.0), (2**63 - 1, None, 5e-324)],
        "b": [(2**63 - 1, None, None)],
        "n" * 200: [(1, 0.2, 2.0)],
        "\ufffd": [(1, 0.1, 0.1 + 0.2)],
    }
    assert {point.created_at for points in found.values() for point in points} == {database._clock.now()}


@pytest.mark.parametrize("slice_points", [7, 100_000])
@pytest.mark.parametrize("max_points", [5, 6, 10, 100, 499, 500])
def test_a_thinned_series_keeps_its_ends_its_peaks_and_what_is_not_finite(
    database: Database, monkeypatch: pytest.MonkeyPatch, slice_points: int, max_points: int
) -> None:
    monkeypatch.setattr(repository, "SLICE_POINTS", slice_points)
    drawn = random.Random(max_points)
    steps = sorted(drawn.sample(range(10_000), 500))
    values: dict[int, float | None] = {step: drawn.random() for step in steps}
    values |= {steps[100]: 9.0, steps[350]: -9.0, steps[200]: None}
    kept = thinned(database, insert_points(database, values), max_points)
    assert len(kept) <= max_points
    assert kept.items() <= values.items()
    assert {steps[0], steps[-1], steps[100], steps[350], steps[200]} <= kept.keys()
    if max_points == 500:
        assert kept == values


@pytest.mark.parametrize("value", [1.0, None])
def test_extreme_series_are_thinned(database: Database, value: float | None) -> None:
    far = {0: value, 2**63 - 1: value, 2**62: value} | dict.fromkeys(range(1, 50), value)
    kept = thinned(database, insert_points(database, far), 10)
    assert {0, 2**63 - 1} <= kept.keys()
    assert len(kept) <= 10


def test_a_million_points_take_bounded_memory(api: Api) -> None:
    job_id = add_job(api.database)
    with api.database.write() as unit:
        statement = """
            INSERT INTO metric_points (job_id, name, step, value, created_at)
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
            SELECT :job, 'train/loss', i, (i * 31 % 1009) / 1009.0, '2026-01-01 00:00:00' FROM n
        """
        unit.session.execute(text(statement), {"job": job_id})
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    points = api.client.get(f"/v1/jobs/{job_id}/metrics?max_points=1000").json()["series"]["train/loss"]
    done.set()
    watcher.join()
    assert (points[0]["step"], points[-1]["step"]) == (1, 1_000_000)
    assert 900 < len(points) <= 1000
    assert peak - before < 50e6  # unsliced, SQLite's sort alone takes 80 MB


@pytest.fixture
def url(api: Api) -> str:
    lease = claimed(api.database)
    with api.database.write() as unit:
        unit.metrics.add(*lease, step=0, values={"base/segm_mAP": 0.1, "base/x": None}, training_epoch=0)
        unit.metrics.add(*lease, step=1, values={"train/loss": 2.5, "train/lr": float("inf")}, training_epoch=0.5)
        unit.metrics.add(*lease, step=2, values={"train/loss": 2.0, 'odd,"name"': 1.0}, training_epoch=1)
        unit.metrics.add(*lease, step=3, values={"base/segm_mAP": 0.2}, training_epoch=1)
    return f"/v1/jobs/{lease[0]}/metrics"


def test_series_and_constants_are_read(api: Api, url: str) -> None:
    answer = api.client.get(url).json()
    assert answer["keys"] == ["base/segm_mAP", "base/x", 'odd,"name"', "train/loss", "train/lr"]
    assert answer["last_step"] == 3
    assert [point["value"] for point in answer["series"]["base/segm_mAP"]] == [0.1, 0.2]
    assert answer["constants"] == {"base/segm_mAP": 0.2, "base/x": None}
    first = answer["series"]["train/loss"][0]
    assert first | {"created_at": ""} == {"step": 1, "epoch": 0.5, "value": 2.5, "finite": True, "created_at": ""}
    lr = answer["series"]["train/lr"][0]
    assert (lr["value"], lr["finite"]) == (None, False)
    assert api.client.get(f"{url}?keys=train/loss,base/x").json()["keys"] == ["base/x", "train/loss"]
    later = api.client.get(f"{url}?after_step=1").json()
    assert sorted(later["series"]) == ["base/segm_mAP", 'odd,"name"', "train/loss"]
    assert later["constants"] == answer["constants"]
    earlier = api.client.get(f"{url}?before_step=2&keys=train/loss").json()
    assert [point["step"] for point in earlier["series"]["train/loss"]] == [1]
    nothing = api.client.get(f"/v1/jobs/{add_job(api.database)}/metrics").json()
    assert (nothing["series"], nothing["constants"], nothing["last_step"]) == ({}, {}, None)


def test_the_same_comes_as_csv(api: Api, url: str) -> None:
    asked = api.client.get(url, params={"format": "csv"})
    accepted = api.client.get(url, headers={"Accept": "text/csv"})
    assert asked.content == accepted.content
    assert asked.headers["content-type"] == "text/csv; charset=utf-8"
    assert asked.headers["content-disposition"].startswith('attachment; filename="job_')
    rows = list(csv.DictReader(asked.text.splitlines()))
    assert [(row["name"], row["step"], row["value"], row["finite"]) for row in rows] == [
        ("base/segm_mAP", "0", "0.1", "true"),
        ("base/segm_mAP", "3", "0.2", "true"),
        ("base/x", "0", "", "false"),
        ('odd,"name"', "2", "1.0", "true"),
        ("train/loss", "1", "2.5", "true"),
        ("train/loss", "2", "2.0", "true"),
        ("train/lr", "1", "", "false"),
    ]
    json_wins = api.client.get(url, params={"format": "json"}, headers={"Accept": "text/csv"})
    assert json_wins.json()["object"] == "job.metrics"


def test_very_many_series_are_thinned_together(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.usecases.metrics.MOST_POINTS", 40)
    job_id = insert_points(api.database, {step: float(step) for step in range(100)}, "a")
    with api.database.write() as unit:
        row = {"job_id": job_id, "name": "b", "epoch": None, "created_at": api.clock.now()}
        unit.session.execute(insert(MetricPoint), [row | {"step": step, "value": step} for step in range(100)])
    series = api.client.get(f"/v1/jobs/{job_id}/metrics").json()["series"]
    assert [10 <= len(series[name]) <= 20 for name in ("a", "b")] == [True, True]


@pytest.mark.parametrize(
    "query",
    ["max_points=4", "max_points=10001", "format=xml", "keys=", f"before_step={2**63}", "nope=1", "keys=" + "x" * 4001],
)
def test_wrong_queries_are_refused(api: Api, url: str, query: str) -> None:
    assert_problem(api.client.get(f"{url}?{query}"), 422, "invalid_request")


def test_hostile_names_find_nothing(api: Api, url: str) -> None:
    for name in (
        "\x00",
        "%",
        "'; DROP TABLE jobs",
        "a," * 1000,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ):
        answer = api.client.get(url, params={"keys": name}).json()
        assert (answer["series"], answer["constants"]) == ({}, {})


def test_head_is_answered(api: Api, url: str) -> None:
    assert (api.client.head(url).status_code, api.client.head(url).content) == (200, b"")
