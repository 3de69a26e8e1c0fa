"""The whole service on one machine with one command: broker, API, workers and reconciler as child processes.

Needs no Docker, Redis or PostgreSQL. Every child dies with this process, is started again when it ends, and logs to
`data_dir/logs` and, prefixed, to the terminal. `python -m service.embedded --data-dir DIR --port N`.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import itertools
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from service import broker
from service.child import Child, say
from service.server import free_port, listening
from service.shared import checks, gpus, tracing
from service.shared.checks import Level
from service.shared.db.migrate import upgrade
from service.shared.errors import ServiceError, SettingsError
from service.shared.private_files import keep_private
from service.shared.settings import PREFIX, Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.shared.checks import Finding

TICK_S = 0.1
START_TIMEOUT_S = 60.0
STOP_MARGIN_S = 3.0  # for what a worker does after its trainer's time to save
BROKER_STOP_S = 2.0
LOG_LINES_SHOWN = 20

LOCK = "serve.lock"
GPU_WORKER = "gpu-worker"
PROGRAMS = {
    "api": ["service.cli", "api"],
    "cpu-worker": ["worker.app", "--queue", "cpu"],
    "predictor": ["worker.app", "--queue", "predict"],
    "reconciler": ["service.reconciler"],
}


class StartError(ServiceError):
    """The service cannot be started here; the message says what to do."""


def serve(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of everything that is kept.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the API.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port of the API; 0: any free one.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written with the API's URL once it answers.")] = None,
) -> None:
    """Run the whole service on this machine until Ctrl-C. All other settings are read from SAM3_* variables."""
    keep_private()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    given = {"data_dir": data_dir, "host": host, "port": port}
    try:
        if sys.platform != "linux":
            raise StartError("the embedded service needs Linux, whose kernel ends the processes of a parent that dies")
        settings = load(**{name: value for name, value in given.items() if value is not None})
        checks.require(settings, *CHECKS)
        tracing.is_asked_for(os.environ)  # what its processes would refuse to start for, each again and again
        with exclusive(settings.data_dir):
            run(settings, stop, ready_file)
    except ServiceError as error:
        typer.echo("\n".join(f"cannot start: {line}" for line in error.message.splitlines()), err=True)
        raise SystemExit(2 if isinstance(error, SettingsError) else 1) from None


def database_to_migrate(settings: Settings) -> Iterator[Finding]:
    """As `checks.database`, for a process that makes the schema itself."""
    return (each for each in checks.database(settings) if each.check != "schema" or each.level is not Level.FAULT)


def alone(settings: Settings) -> Iterator[Finding]:
    """Whether no setting is for one process only, and a broker is at hand."""
    if settings.pulse_file is not None:
        advice = "the embedded service watches its own"
        yield checks.fault("pulse_file", f"{PREFIX}PULSE_FILE is for one process", advice)
    if settings.broker_url == own_broker_url(settings):
        try:
            broker.binary()
        except broker.NoBrokerError as error:
            message, _, advice = error.message.partition(": ")
            yield checks.fault("broker", message, advice)


def gpus_shared(settings: Settings) -> Iterator[Finding]:
    """Whether there are the GPUs that workers are to have."""
    try:
        divide([gpu.name for gpu in gpus.visible()], settings.worker_gpus)
    except StartError as error:
        message, _, advice = error.message.partition(": ")
        yield checks.fault("worker_gpus", message, advice)


def unused(settings: Settings) -> Iterator[Finding]:
    """Whether no other service has the folder."""
    path = settings.data_dir / LOCK
    if not path.exists():
        return
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            message, _, advice = _in_use(settings.data_dir, lock).partition(": ")
            yield checks.fault("data_dir", message, advice)


CHECKS = (checks.data_dir, unused, database_to_migrate, listening, alone, gpus_shared)


def own_broker_url(settings: Settings) -> str:
    """The broker's URL where the embedded service runs one itself."""
    return f"redis+socket://{settings.data_dir / 'broker.sock'}"


def run(settings: Settings, stop: threading.Event, ready_file: Path | None = None) -> None:
    """Start everything, keep it running until `stop` is set, then stop it in order and leave nothing behind.

    Raises:
        ServiceError: if the service cannot be started.
    """
    visible = [gpu.name for gpu in gpus.visible()]
    shares = divide(visible, settings.worker_gpus)
    port = free_port(settings.host, settings.port)
    url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    upgrade(settings)
    logs = settings.data_dir / "logs"
    logs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        children: list[Child] = []
        stack.callback(_stop, children, settings.terminate_grace_s + STOP_MARGIN_S)
        broker_url = settings.broker_url
        if broker_url == own_broker_url(settings):
            path = stack.enter_context(broker.short_enough(settings.data_dir / "broker.sock"))
            broker_url = f"redis+socket://{path}"
            children.append(Child("broker", broker.command(settings.data_dir, path), os.environ, logs))
            _await(lambda: broker.answers(path), children[0], stop)
        values = {"data_dir": settings.data_dir, "host": settings.host, "port": port, "broker_url": broker_url}
        environment = os.environ | {PREFIX + name.upper(): str(value) for name, value in values.items()}
        for name, arguments in PROGRAMS.items():
            children.append(Child(name, [sys.executable, "-um", *arguments], environment, logs))
        for number, share in enumerate(shares, start=1):
            name = GPU_WORKER if number == 1 else f"{GPU_WORKER}-{number}"
            arguments = ["worker.app", "--queue", "gpu", "--gpus", str(share.gpus)]
            own = {} if share.visible is None else {gpus.VISIBLE: share.visible}
            children.append(Child(name, [sys.executable, "-um", *arguments], environment | own, logs))
        api = next(child for child in children if child.name == "api")
        _await(lambda: _answers(settings.host, port), api, stop)
        if not stop.is_set():
            _welcome(url, settings.data_dir)
            if ready_file is not None:
                ready_file.write_text(f"{url}\n")
        while not stop.wait(TICK_S):
            for child in children:
                child.keep_running()


@contextlib.contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        StartError: if another service uses it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / LOCK).open("a+")
    except OSError as error:
        raise StartError(f"cannot keep data in {data_dir}: {error.strerror}. Choose another --data-dir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(_in_use(data_dir, lock)) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _in_use(data_dir: Path, lock: IO[str]) -> str:
    lock.seek(0)
    holder = lock.read().strip() or "unknown"
    return f"{data_dir} is in use by another service (process {holder}): stop that one, or choose another --data-dir"


@dataclass(frozen=True)
class Share:
    """What one training worker gets; `visible`: its CUDA_VISIBLE_DEVICES, None on a machine without GPUs."""

    gpus: int
    visible: str | None


def divide(visible: Sequence[str], counts: Sequence[int]) -> list[Share]:
    """The shares of training workers with so many GPUs each, of those that are visible; empty: one for each GPU.

    Raises:
        StartError: if there are fewer.
    """
    if not visible:
        return [Share(count, None) for count in counts or (1,)]
    counts = counts or (1,) * len(visible)
    if sum(counts) > len(visible):
        raise StartError(
            f"{PREFIX}WORKER_GPUS asks for {sum(counts)} GPUs, but this machine shows {len(visible)}: "
            f"lower it, or have {gpus.VISIBLE} name more."
        )
    ends = list(itertools.accumulate(counts))
    return [Share(count, ",".join(visible[end - count : end])) for count, end in zip(counts, ends, strict=True)]


def _await(is_up: Callable[[], bool], child: Child, stop: threading.Event) -> None:
    """Wait until a child is up, or a stop is asked for.

    Raises:
        StartError: if it ends instead, or takes too long.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up() and not stop.wait(TICK_S):
        status = child.returncode
        if status is not None or time.monotonic() > deadline:
            what = f"ended with status {status}" if status is not None else f"is not up after {START_TIMEOUT_S:g} s"
            lines = child.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            raise StartError("\n".join([f"the {child.name} {what}; the end of {child.log}:", *lines]))


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _welcome(url: str, data_dir: Path) -> None:
    for line in f"""
The service is ready.
  Pages    {url}      (open this in a browser)
  API      {url}/v1   (described at {url}/docs)
  Data     {data_dir}
  Dataset  curl {url}/v1/datasets -F file=@dataset.zip
  Job      curl {url}/v1/jobs -H 'Content-Type: application/json' \\
             -d '{{"name": "first", "base_model": "sam3-tiny", "dataset_id": "ds_..."}}'
  Stop     Ctrl-C
""".splitlines():
        say(line)


def _stop(children: list[Child], patience_s: float) -> None:
    """Stop all but the broker together, then the broker; whoever takes longer than the patience is killed."""
    say("stopping")
    deadline = time.monotonic() + patience_s
    others = [child for child in children if child.name != "broker"]
    for child in others:
        child.terminate()
    for child in others:
        child.wait(deadline)
    for child in children:
        if child not in others:
            child.terminate()
            child.wait(time.monotonic() + BROKER_STOP_S)


if __name__ == "__main__":
    typer.run(serve)
