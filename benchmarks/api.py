"""Requests a second of the HTTP API on SQLite and PostgreSQL, against MLflow's server and a bare FastAPI handler.

One server process each, asked over 16 connections in turn: jobs are created, read, and asked for with If-None-Match.
The bare handler reads one row of the same database by its primary key, with the same engine, and does nothing else: the
rate that this stack allows. MLflow creates and reads runs on SQLite. Server and client share the machine's cores. A
broker runs too, so that announcing a job is part of creating it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.api_process import free_port, running
from benchmarks.http_load import Load, drive, request
from benchmarks.live_job import open_database, ready_dataset
from benchmarks.mlflow_server import MLFLOW, mlflow_server
from service.shared.settings import Settings
from tests.servers import fresh_database, postgres_server, redis_server

CONNECTIONS = 16
JOB = {"name": "benchmark", "base_model": "sam3-tiny", "config": {"lora": {"rank": 16}}, "tags": ["a", "b"]}


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []

    def note(server: str, operation: str, load: Load) -> None:
        rows.append({"server": server, "operation": operation, **load.to_dict()})
        print(f"  {rows[-1]}", flush=True)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_database(stack.enter_context(postgres_server())))
        (Path(folder) / "broker").mkdir()
        broker = stack.enter_context(redis_server(Path(folder) / "broker"))
        for name, database_url in (("sqlite", ""), ("postgresql", url)):
            settings = Settings(data_dir=Path(folder) / name, database_url=database_url, broker_url=broker)
            for operation, load in measure_ours(settings, options.seconds).items():
                note(name, operation, load)
        if not options.without_peer:
            with mlflow_server(Path(folder)) as address:
                for operation, load in measure_mlflow(address, options.seconds).items():
                    note("mlflow", operation, load)
    if not options.without_peer or options.output is not None:
        written = record.write("api", rows, path=options.output, connections=CONNECTIONS, peer=MLFLOW)
        print(f"written to {written}")
    report(rows)
    return 0


def measure_ours(settings: Settings, seconds: float) -> dict[str, Load]:
    """Rates of the service, and of the bare handler on the same database afterwards."""
    with contextlib.closing(open_database(settings)) as database:
        dataset_id = ready_dataset(database)
    body = json.dumps({**JOB, "dataset_id": dataset_id}).encode()
    loads = {}

    def run(make: Any, status: int) -> Load:
        return drive(address, make, status=status, connections=CONNECTIONS, seconds=seconds)

    with served(settings, ["-m", "service.cli", "api"]) as address:
        base = f"http://{address[0]}:{address[1]}"
        create = urllib.request.Request(f"{base}/v1/jobs", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(create, timeout=30) as answer:
            path = f"/v1/jobs/{json.load(answer)['id']}"
        with urllib.request.urlopen(base + path, timeout=30) as answer:
            known = {"If-None-Match": answer.headers["ETag"]}
        loads["get"] = run(lambda _: request("GET", path, address), 200)
        loads["get, not modified"] = run(lambda _: request("GET", path, address, headers=known), 304)
        loads["create"] = run(lambda _: request("POST", "/v1/jobs", address, body=body), 201)
        keyed = hashlib.sha256(dataset_id.encode()).hexdigest()
        loads["create with a key"] = run(
            lambda n: request("POST", "/v1/jobs", address, body=body, headers={"Idempotency-Key": f"{keyed}-{n}"}), 201
        )
    with served(settings, ["-m", "benchmarks.bare_handler"]) as address:
        row = f"/jobs/{path.rpartition('/')[2]}"
        loads["bare handler"] = run(lambda _: request("GET", row, address), 200)
    return loads


def measure_mlflow(base: str, seconds: float) -> dict[str, Load]:
    """Rates of MLflow's create-run and get-run."""
    host, _, port = base.removeprefix("http://").partition(":")
    address, body = (host, int(port)), json.dumps({"experiment_id": "0", "start_time": 1}).encode()
    path = "/api/2.0/mlflow/runs"
    create = urllib.request.Request(f"{base}{path}/create", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(create, timeout=30) as answer:
        run_id = json.load(answer)["run"]["info"]["run_id"]
    asked = {
        "get": request("GET", f"{path}/get?run_id={run_id}", address),
        "create": request("POST", f"{path}/create", address, body=body),
    }
    return {
        operation: drive(address, lambda _, sent=sent: sent, status=200, connections=CONNECTIONS, seconds=seconds)  # type: ignore[misc]
        for operation, sent in asked.items()
    }


@contextlib.contextmanager
def served(settings: Settings, module: list[str]) -> Iterator[tuple[str, int]]:
    """Address of a server process with these settings."""
    port = free_port()
    values = {"DATA_DIR": settings.data_dir, "DATABASE_URL": settings.database_url, "BROKER_URL": settings.broker_url}
    values |= {"PORT": port, "LOG_LEVEL": "ERROR"}
    with running(module, port, **{f"SAM3_{name}": str(value) for name, value in values.items()}):
        yield "127.0.0.1", port


def report(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, and the lines for scripts."""
    print("\n| server | operation | requests/s | p50 ms | p99 ms |\n" + "|---" * 5 + "|")
    for row in rows:
        print(f"| {row['server']} | {row['operation']} | {row['per_second']} | {row['p50_ms']} | {row['p99_ms']} |")
    found = {(row["server"], row["operation"]): row for row in rows}
    print()
    for server in ("sqlite", "postgresql"):
        for operation in ("get", "get, not modified", "create"):
            name = operation.replace(", ", "-").replace(" ", "-")
            mine = found[server, operation]
            bare = mine["per_second"] / found[server, "bare handler"]["per_second"]
            print(f"api-{server}-{name}-bare ratio={bare:.2f} target=0.50")
            if peer := found.get(("mlflow", operation.partition(",")[0])):
                print(f"api-{server}-{name} ratio={mine['per_second'] / peer['per_second']:.2f} target=10.00")
                print(f"api-{server}-{name}-p99 ratio={peer['p99_ms'] / mine['p99_ms']:.2f} target=1.00")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--without-peer", action="store_true", help="leave MLflow out, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/api.json")
    return parser.parse_args(arguments)
