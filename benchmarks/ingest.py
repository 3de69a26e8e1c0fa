"""How many metric points a second a worker stores, on SQLite and on PostgreSQL, against MLflow's server on SQLite.

Ours is the way of a real run: a trainer's events go to the worker's `Observer`, which writes them in batches, each in
one transaction that the lease fences. MLflow is asked over HTTP, as its client does, with as many metrics in a request
as it takes (1000), and answers from an environment of its own below the user's cache folder, made at the first run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import record
from benchmarks.live_job import open_database, running_job
from benchmarks.mlflow_server import MLFLOW, mlflow_server
from sam3_lora.events import Event, EventType
from service.shared.settings import Settings
from tests.servers import fresh_database, postgres_server
from worker.observer import Observer

NAMES = 20  # metrics of a step
MLFLOW_BATCH = 1000  # the most it takes


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured = {"sqlite": Settings(data_dir=Path(folder) / "sqlite")}
        url = stack.enter_context(fresh_database(stack.enter_context(postgres_server())))
        measured["postgresql"] = Settings(data_dir=Path(folder) / "postgresql", database_url=url)
        for name, settings in measured.items():
            rows.append({"store": name, "points_per_second": [observe(settings, options.steps) for _ in range(3)]})
            print(f"  {rows[-1]}", flush=True)
        if not options.without_peer:
            with mlflow_server(Path(folder)) as address:
                rates = [log_batches(address, options.steps) for _ in range(3)]
            rows.append({"store": "mlflow on sqlite", "points_per_second": rates})
            print(f"  {rows[-1]}", flush=True)
    if not options.without_peer or options.output is not None:
        written = record.write("ingest", rows, path=options.output, names=NAMES, steps=options.steps, peer=MLFLOW)
        print(f"written to {written}")
    if options.without_peer:
        return 0
    sqlite, _, peer = (median(row["points_per_second"]) for row in rows)
    print(f"ingest ratio={sqlite / peer:.2f} target=10.00")
    return 0


def observe(settings: Settings, steps: int) -> float:
    """Points a second that a new job's worker stores."""
    database = open_database(settings)
    job = running_job(database)
    log = settings.data_dir / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    observer = Observer(database, job, log, publish=lambda _: None, publish_artifact=lambda _: None)
    began = time.perf_counter()
    for step in range(steps):
        values = {f"train/metric_{number}": step / (number + 1) for number in range(NAMES)}
        observer(Event(EventType.METRICS, data={"step": step, "epoch": 1, "values": values}))
    observer.finish()
    took_s = time.perf_counter() - began
    with database.read() as unit:
        stored = sum(series.points for series in unit.metrics.series(job.id))
    database.close()
    if stored != steps * NAMES:
        raise RuntimeError(f"{stored} points of {steps * NAMES} were stored")
    return round(stored / took_s)


def log_batches(address: str, steps: int) -> float:
    """Points a second that MLflow stores of a new run."""

    def call(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.load(answer))

    run_id = call("runs/create", {"experiment_id": "0", "start_time": 1})["run"]["info"]["run_id"]
    points = [
        {"key": f"train/metric_{number}", "value": step / (number + 1), "timestamp": step, "step": step}
        for step in range(steps)
        for number in range(NAMES)
    ]
    began = time.perf_counter()
    for start in range(0, len(points), MLFLOW_BATCH):
        call("runs/log-batch", {"run_id": run_id, "metrics": points[start : start + MLFLOW_BATCH]})
    return round(len(points) / (time.perf_counter() - began))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks ingest", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help=f"steps of {NAMES} metrics")
    parser.add_argument("--without-peer", action="store_true", help="leave MLflow out, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/ingest.json")
    return parser.parse_args(arguments)
