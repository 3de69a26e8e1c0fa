"""The worker process: `python -m worker.app --queue gpu|cpu|predict`; one per GPU or for several that train together,
and at least one of the others.

The only place that wires a worker. It never imports a training framework: models live in child processes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from celery.exceptions import SecurityWarning
from sqlalchemy.exc import SQLAlchemyError

from sam3_lora.config import uninstalled
from service.shared import checks, pulse, tracing
from service.shared import log as logs
from service.shared.clock import SystemClock
from service.shared.errors import SettingsError
from service.shared.ids import new_id
from service.shared.private_files import keep_private
from service.shared.queue import CeleryQueue, celery_app
from service.shared.redaction import secrets_of
from service.shared.settings import Settings, load
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.shared.vault import Vault
from worker import device
from worker.comparer import CompareRunner
from worker.estimator import Estimator
from worker.exporter import ExportRunner
from worker.ingest import IngestRunner
from worker.predictor import PredictRunner
from worker.runner import TRAINER, TrainingRunner
from worker.station import Station
from worker.supervisor import leave_hub_out
from worker.tasks import compare, deliver, estimate, export, ingest, predict, training
from worker.webhooks import DeliveryRunner, Senders
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.work import Me

log = structlog.get_logger("worker.app")

HELP = "gpu: train, compare models; cpu: check datasets, export models, send webhooks; predict: answer predictions"
HELP_GPUS = "GPUs that its jobs may use, the first of those to be seen (default: all); without GPUs: processes"
GPU, CPU, PREDICT = "gpu", "cpu", "predict"


def main(arguments: list[str] | None = None) -> None:
    """Work until SIGTERM; then put the work in progress back and exit."""
    keep_private()
    parser = argparse.ArgumentParser(prog="worker.app", description="Run a worker of the training service.")
    parser.add_argument("--queue", choices=[GPU, CPU, PREDICT], required=True, help=HELP)
    parser.add_argument("--gpus", type=int, help=HELP_GPUS)
    options = parser.parse_args(arguments)
    if options.gpus is not None and (options.queue != GPU or options.gpus < 1):
        parser.error("--gpus is a number from 1 on, and belongs to --queue gpu")
    found = None
    faults = []
    if importlib.util.find_spec("torch") is None:  # every queue has work that needs a model, in a child process
        faults.append("a worker needs PyTorch: pip install 'sam3-lora-service[service,train]'")
    try:
        found = device.find(options.gpus) if options.queue == GPU else None
        tracing.start(f"sam3-{options.queue}-worker")
    except SettingsError as error:
        faults.append(error.message)
    try:
        settings = load()
        logs.configure(settings.log_level, f"{options.queue}-worker", secrets_of(settings, os.environ))
        logs.catch_rest()
        if options.queue == GPU:
            faults += without_library(settings)
        checks.require(settings, checks.data_dir, checks.database)
        if not settings.checkpoint_from_hub:
            leave_hub_out(os.environ)
    except SettingsError as error:
        faults.append(error.message)
    if faults:
        sys.stderr.write("".join(f"cannot start: {line}\n" for fault in faults for line in fault.splitlines()))
        sys.exit(2)
    # Celery speaks on stdout, in words of its own, of what the log has as well.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    work(settings, options.queue, found)


def without_library(settings: Settings) -> list[str]:
    """What to tell of trackers that are asked for and not installed."""
    return [
        f"SAM3_TRACKERS: {name} is not installed: pip install 'sam3-lora-service[service,train,{name}]'"
        for name in uninstalled(settings.trackers)
    ]


def work(
    settings: Settings, queue: str, found: device.Device | None = None, *, trainer: tuple[str, ...] = TRAINER
) -> None:
    """Run a Celery worker for one queue until it is told to stop; that of GPUs needs a device."""
    worker_id = new_id("worker")
    logs.identify(worker_id=worker_id)
    with contextlib.ExitStack() as stack:
        stack.callback(tracing.stop)
        ringer = stack.enter_context(contextlib.closing(CeleryQueue(settings, SystemClock())))
        database = stack.enter_context(contextlib.closing(Database(settings, SystemClock(), ringer)))
        workspace = stack.enter_context(contextlib.closing(Workspace(settings.data_dir / "workspace")))
        storage = Storage(settings)
        app = celery_app(settings)
        draining = threading.Event()
        places = (settings, database, storage, workspace)
        me: Me = {"worker_id": worker_id, "is_draining": draining.is_set}
        kinds: list[Callable[[], bool]]
        messages_at_once = 1
        if found is not None:
            tasks = [training, compare]
            kinds = [
                TrainingRunner(*places, **me, device=found.name, gpus=found.gpus, trainer=trainer).run_next,
                CompareRunner(*places, **me).run_next,
            ]
        elif queue == PREDICT:
            tasks, kinds = [predict], [stack.enter_context(PredictRunner(*places, **me)).run_next]
        else:
            tasks = [estimate, ingest, export]
            estimator = Estimator(database, is_draining=draining.is_set)
            kinds = [
                estimator.run_next,
                IngestRunner(*places, **me).run_next,
                ExportRunner(*places, **me).run_next,
            ]
            senders = Senders(draining, settings.poll_interval_s)
            deliver.register(app, senders)
            stack.callback(senders.close, settings.webhook_timeout_s)  # after the station has begun to drain
            senders.start(DeliveryRunner(*places, **me, vault=Vault(settings), on_claimed=senders.ring).run_next)
            messages_at_once = 2  # while one has a dataset checked, another can wake a sender
        station = Station(*kinds, draining=draining, poll_interval_s=settings.poll_interval_s)
        for task in tasks:
            task.register(app, station)
        stack.enter_context(_present(settings, database, worker_id, queue, found))
        stack.callback(station.close, settings.terminate_grace_s + settings.kill_grace_s)
        # Celery's warm shutdown waits for the task in progress, which ends soon once it is drained.
        signals.worker_shutting_down.connect(lambda **_: _drain(draining), weak=False)
        signal.signal(signal.SIGTERM, _exit)  # until Celery, still starting, sets its own
        station.start()
        options = ["--pool=threads", f"--concurrency={messages_at_once}", "--without-gossip", "--without-mingle"]
        options += [f"--queues={queue}", f"--hostname={worker_id}@%h", f"--loglevel={settings.log_level}"]
        # Celery warns whoever runs it as root of pickled messages; `accept_content` takes none.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        app.worker_main(["--quiet", "worker", *options])


def _drain(draining: threading.Event) -> None:
    log.info("worker_stopping")
    draining.set()


def _exit(*_: object) -> None:
    raise SystemExit(0)


@contextlib.contextmanager
def _present(
    settings: Settings, database: Database, worker_id: str, kind: str, found: device.Device | None
) -> Iterator[None]:
    """Be listed among the workers that live."""
    left = threading.Event()
    facts: dict[str, Any] = {"kind": kind, "host": socket.gethostname(), "pid": os.getpid()}
    facts["device"] = None
    if found is not None:
        facts |= {"device": found.name, "memory_bytes": found.memory_bytes, "gpus": found.gpus}

    def beat() -> None:
        while True:
            try:
                with database.write() as unit:
                    unit.workers.beat(worker_id, **facts)
            except SQLAlchemyError as error:
                log.warning("presence_failed", error=str(error))
            pulse.beat(settings.pulse_file)
            if left.wait(settings.heartbeat_interval_s):
                return

    thread = threading.Thread(target=beat, name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        with contextlib.suppress(SQLAlchemyError), database.write() as unit:
            unit.workers.remove(worker_id)


if __name__ == "__main__":
    main()
