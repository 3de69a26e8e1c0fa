"""`sam3-service doctor`: looks at everything that the service needs, and says what to do about what is not right."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import broker as broker_programs
from service.embedded import alone, database_to_migrate, gpus_shared, own_broker_url, unused
from service.operate import machine, neighbours
from service.server import listening
from service.shared import checks
from service.shared import log as logs
from service.shared.checks import Level, fault, ok
from service.shared.errors import ServiceError, SettingsError
from service.shared.redaction import redactor, secrets_of
from service.shared.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.shared.checks import Check, Finding

CHECK_TIMEOUT_S = 5.0
MARKS = {Level.OK: "ok", Level.WARNING: "warning", Level.FAULT: "FAULT"}


def port(settings: Settings) -> Iterator[Finding]:
    """Whether the API can listen, or does so already."""
    for finding in listening(settings):
        yield ok("port", f"an API answers on port {settings.port}") if _is_api(settings) else finding


class Process(StrEnum):
    """What the checks are for."""

    SERVE = "serve"
    API = "api"
    RECONCILER = "reconciler"
    GPU_WORKER = "gpu-worker"
    CPU_WORKER = "cpu-worker"
    PREDICT_WORKER = "predict-worker"


NEIGHBOURS: tuple[Check, ...] = (neighbours.database, neighbours.broker, neighbours.storage)
CHECKS: dict[Process, tuple[Check, ...]] = {
    Process.API: (checks.data_dir, machine.space, *NEIGHBOURS, port, machine.open_files, machine.weights),
    Process.RECONCILER: NEIGHBOURS,
    Process.GPU_WORKER: (
        checks.data_dir, machine.space, *NEIGHBOURS, machine.devices, machine.shared_memory, machine.weights,
    ),
    Process.CPU_WORKER: (
        checks.data_dir, machine.space, *NEIGHBOURS, neighbours.dataset_buckets, machine.dataset_roots,
        machine.shared_memory, machine.weights,
    ),
    Process.PREDICT_WORKER: (checks.data_dir, machine.space, *NEIGHBOURS, machine.devices, machine.weights),
}  # fmt: skip


@dataclass
class Report:
    process: Process
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> Level:
        levels = {finding.level for finding in self.findings}
        return next((level for level in (Level.FAULT, Level.WARNING) if level in levels), Level.OK)


def doctor(
    process: Annotated[
        Process | None,
        typer.Option(help="What is to run here (default: serve where the database is SQLite, else the API)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    strict: Annotated[bool, typer.Option(help="End with 1 if there are warnings.")] = False,
) -> None:
    """Check settings, machine, database, broker and storage; ends with 2 if there is a fault."""
    logs.configure("CRITICAL", "doctor")  # what the checks find is told below
    report = examine(process)
    typer.echo(_json(report) if as_json else _table(report))
    if report.status is Level.FAULT:
        raise typer.Exit(2)
    if strict and report.status is Level.WARNING:
        raise typer.Exit(1)


def examine(process: Process | None = None) -> Report:
    """Run every check of a process; wrong settings are all that can be told where there are some."""
    try:
        settings = load()
    except SettingsError as error:
        lines = [fault("settings", line, "correct it") for line in error.message.splitlines()]
        return Report(process or Process.SERVE, lines)
    if process is None:
        process = Process.SERVE if settings.database_url.startswith("sqlite") else Process.API
    chosen = _serving(settings) if process is Process.SERVE else CHECKS[process]
    found = [ok("settings", "can be read"), *run_all(settings, chosen, CHECK_TIMEOUT_S)]
    hide = redactor(secrets_of(settings, os.environ))  # errors of libraries tell what they were given
    return Report(process, [replace(each, message=hide(each.message), advice=hide(each.advice)) for each in found])


def run_all(settings: Settings, chosen: Sequence[Check], timeout_s: float) -> list[Finding]:
    """What the checks find, in their order; one that does not end in time is a finding beside what it has found."""
    runs = [_Run(settings, check) for check in chosen]
    deadline = time.monotonic() + timeout_s
    for run in runs:
        run.thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for run in runs for finding in run.result(timeout_s)]


class _Run:
    def __init__(self, settings: Settings, check: Check) -> None:
        self._name = getattr(check, "__name__", "check")
        self._findings: list[Finding] = []
        self.thread = threading.Thread(target=self._collect, args=(settings, check), daemon=True)
        self.thread.start()

    def result(self, timeout_s: float) -> list[Finding]:
        found = list(self._findings)
        if self.thread.is_alive():
            advice = "see whether what it asks can be reached from here"
            found.append(fault(self._name, f"no answer within {timeout_s:g} s", advice, may_pass=True))
        return found

    def _collect(self, settings: Settings, check: Check) -> None:
        try:
            for finding in check(settings):
                self._findings.append(finding)
        except Exception as error:  # noqa: BLE001 - the other checks are still worth their answers
            kind = type(error).__name__
            self._findings.append(fault(self._name, f"the check failed ({kind}: {checks.first_line(error)})", ""))


def _serving(settings: Settings) -> tuple[Check, ...]:
    """The checks of the embedded service; where one runs already, its port and folder are its own."""
    is_running = any(unused(settings))
    own = own_broker_url(settings) == settings.broker_url

    def database(settings: Settings) -> Iterator[Finding]:
        if _is_unmigrated(settings):
            yield from database_to_migrate(settings)
            yield ok("schema", "the service brings it up to date at its start")
        else:
            yield from neighbours.database(settings)

    def broker(settings: Settings) -> Iterator[Finding]:
        try:
            yield from neighbours.broker_program(settings, Path(broker_programs.binary()))
        except ServiceError:
            return  # `alone` tells it

    def running(settings: Settings) -> Iterator[Finding]:
        yield ok("serve", f"the service runs in {settings.data_dir}")

    places: tuple[Check, ...] = (running,) if is_running else (port,)
    return (
        checks.data_dir, machine.space, database, broker if own else neighbours.broker, neighbours.storage, *places,
        alone, gpus_shared, machine.devices, machine.shared_memory, machine.open_files, machine.weights,
        neighbours.dataset_buckets, machine.dataset_roots,
    )  # fmt: skip


def _is_unmigrated(settings: Settings) -> bool:
    """Whether all that the database lacks is a schema, which the embedded service makes."""
    faults = [each for each in checks.database(settings) if each.level is Level.FAULT]
    return bool(faults) and all(each.check == "schema" for each in faults)


def _is_api(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - where to ask
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return bool(json.load(connection.getresponse()) == {"status": "ok"})
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _table(report: Report) -> str:
    width = max(len(finding.check) for finding in report.findings)
    lines = []
    for finding in report.findings:
        lines.append(f"{finding.check:<{width}}  {MARKS[finding.level]:<7}  {finding.message}")
        if finding.advice:
            lines.append(f"{'':<{width}}  {'':<7}  -> {finding.advice}")
    count = {level: sum(finding.level is level for finding in report.findings) for level in Level}
    lines.append(f"\nFor {report.process}: faults {count[Level.FAULT]}, warnings {count[Level.WARNING]}")
    return "\n".join(lines)


def _json(report: Report) -> str:
    found = [
        {"check": each.check, "status": each.level, "message": each.message, "advice": each.advice or None}
        for each in report.findings
    ]
    return json.dumps({"status": report.status, "process": report.process, "checks": found}, indent=2)
