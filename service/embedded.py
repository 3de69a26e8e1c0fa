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
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import broker
from service.child import Child, say
from service.shared import gpus, tracing
from service.shared.db.migrate import upgrade
from service.shared.errors import ServiceError
from service.shared.settings import PREFIX, Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICK_S = 0.1
START_TIMEOUT_S = 60.0
STOP_MARGIN_S = 3.0  # for what a worker does after its trainer's time to save
BROKER_STOP_S = 2.0
LOG_LINES_SHOWN = 20

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
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    given = {"data_dir": data_dir, "host": host, "port": port}
    try:
        if sys.platform != "linux":
            raise StartError("the embedded service needs Linux, whose kernel ends the processes of a parent that dies")
        settings = load(**{name: value for name, value in given.items() if value is not None})
        if settings.pulse_file is not None:
            raise StartError(f"{PREFIX}PULSE_FILE is for one process: the embedded service watches its own")
        tracing.is_asked_for(os.environ)  # what its processes would refuse to start for, each again and again
        with exclusive(settings.data_dir):
            run(settings, stop, ready_file)
    except ServiceError as error:
        typer.echo(f"cannot start: {error.message}", err=True)
        raise SystemExit(1) from None


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
        if broker_url == f"redis+socket://{settings.data_dir / 'broker.sock'}":
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
        lock = (data_dir / "serve.lock").open("a+")
    except OSError as error:
        raise StartError(f"cannot keep data in {data_dir}: {error.strerror}. Choose another --data-dir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StartError(
                f"{data_dir} is in use by another service (process {lock.read().strip() or 'unknown'}). "
                "Stop that one, or choose another --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


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


def free_port(host: str, port: int) -> int:
    """The port, if it can be listened on; any free one for 0.

    Raises:
        StartError: if it cannot.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StartError(f"cannot listen on {host} port {port}: {reason}. Choose another --port.") from error
        return int(listener.getsockname()[1])


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
