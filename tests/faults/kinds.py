"""The faults: each a function that does it and tells what it hit, or None while there is nothing that it could hit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import redis

from service.shared.clock import SystemClock
from service.shared.queue import CeleryQueue, Task
from tests.faults import trainer
from tests.faults.site import TIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.journal import Journal, Life
    from tests.faults.plan import PlannedFault
    from tests.faults.site import Site

LONG_S = TIMES["lease_timeout_s"] + TIMES["self_fence_s"]  # past the lease, also as the reaper counts it
SHORT_S = 2.5  # within the lease
CLOCK_JUMPS_S = (-5400.0, -600.0, 600.0, 5400.0)


@dataclass
class Field:
    """Where a fault strikes; `later` does something after so many seconds, at the latest when the campaign settles."""

    site: Site
    journal: Journal
    later: Callable[[float, Callable[[], object]], None]
    job_ids: Callable[[], list[str]]

    def trainer_of(self, worker: int) -> int | None:
        """The trainer process that a worker has."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(worker).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any("trainer.py" in word or "training.process" in word for word in child.cmdline()):
                        return child.pid
        return None


def strike(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    """Do what the plan says; what was hit."""
    return FAULTS[fault.kind](field, fault)


def _chosen(found: list[Any], fault: PlannedFault) -> Any:
    return found[int(fault.chance * len(found))] if found else None


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _to_role(role: str, number: int, field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    pids = field.site.pids(role)
    # One that does nothing has nothing to lose.
    pid = _chosen([pid for pid in pids if role == "gpu-worker" and field.trainer_of(pid)] or pids, fault)
    if pid is None:
        return None
    hit = {"pid": pid}
    if role == "gpu-worker":
        hit["trainer"] = field.trainer_of(pid)
    _signal(pid, number)
    return hit


def _to_trainer(number: int, field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    life: Life | None = _chosen(field.journal.running(time.monotonic()), fault)
    if life is None:
        return None
    _signal(life.pid, number)
    return {"pid": life.pid, "job": life.job, "epoch": life.epoch, "step": life.step, "trainer": life.pid}


def _freeze(role: str, seconds: float, field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    hit = _to_role(role, signal.SIGSTOP, field, fault)
    if hit is not None:
        field.later(seconds, partial(_signal, hit["pid"], signal.SIGCONT))
    return hit


def _freeze_machine(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    """A worker with its trainer, as where a virtual machine stands still."""
    worker = _chosen([pid for pid in field.site.pids("gpu-worker") if field.trainer_of(pid)], fault)
    found = worker and field.trainer_of(worker)
    if not found:
        return None
    for pid in (worker, found):
        _signal(pid, signal.SIGSTOP)
        field.later(LONG_S, partial(_signal, pid, signal.SIGCONT))
    return {"pid": worker, "trainer": found}


def _deploy(field: Field, fault: PlannedFault) -> dict[str, Any]:
    """Everything of the product at once."""
    trainers = [pid for worker in field.site.pids("gpu-worker") if (pid := field.trainer_of(worker))]
    pids = field.site.pids("embedded") or field.site.services()
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    return {"pids": pids, "trainers": trainers}


def _kill_supervisor(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    trainers = [pid for worker in field.site.pids("gpu-worker") if (pid := field.trainer_of(worker))]
    hit = _to_role("embedded", signal.SIGKILL, field, fault)
    return None if hit is None else hit | {"trainers": trainers}


def _valkey_loses_all(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    hit = _to_role("broker", signal.SIGKILL, field, fault)
    if hit is not None:
        shutil.rmtree(field.site.broker_folder / "appendonlydir", ignore_errors=True)
    return hit


def _valkey_frozen(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    """It takes connections and answers nothing."""
    return _freeze("broker", 3 + 4 * fault.amount, field, fault)


def _down(name: str, number: int, seconds: float, field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    program = field.site.programs[name]
    pid = program.pid
    if pid is None:
        return None
    _signal(pid, number)
    program.hold(seconds * (0.5 + fault.amount))
    return {"pid": pid}


def _doubled_deliveries(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    """Copies of what waits in Valkey, and messages about jobs of all ages."""
    job_ids = field.job_ids()
    if not job_ids:
        return None
    settings = field.site.settings.model_copy(update={"broker_url": f"redis+socket://{field.site.broker_socket}"})
    queue = CeleryQueue(settings, SystemClock())
    try:
        with redis.Redis(unix_socket_path=str(field.site.broker_socket), socket_timeout=1) as client:
            waiting = client.lrange("gpu", 0, 20)
            for message in waiting:
                client.lpush("gpu", message)
    except redis.RedisError:
        return None
    ids = [job_ids[int(fault.chance * len(job_ids))], job_ids[0], *job_ids[-3:]]
    rung = queue.ring(Task.TRAIN, *ids, *ids)
    queue.close()
    return {"copied": len(waiting), "late": len(ids)} if rung else None


def _clock_jump(field: Field, fault: PlannedFault) -> dict[str, Any]:
    """Of reconciler and workers, for some seconds."""
    seconds = CLOCK_JUMPS_S[int(fault.chance * len(CLOCK_JUMPS_S))]
    field.site.clock.write_text(f"{seconds:g}")
    field.later(4 + 8 * fault.amount, partial(field.site.clock.write_text, "0"))
    return {"seconds": seconds}


def _full(name: str, field: Field, fault: PlannedFault) -> dict[str, Any]:
    disk = field.site.disks[name]
    taken = disk.fill()
    field.later(2 + 5 * fault.amount, disk.release)
    return {"disk": name, "bytes": taken}


def _storage_read_only(field: Field, fault: PlannedFault) -> dict[str, Any] | None:
    disk = field.site.disks["storage"]
    if not disk.set_writable(False):
        return None
    field.later(2 + 5 * fault.amount, partial(disk.set_writable, True))
    return {"disk": "storage"}


KILL = signal.SIGKILL
FAULTS: dict[str, Callable[[Field, PlannedFault], dict[str, Any] | None]] = {
    "kill_api": partial(_to_role, "api", KILL),
    "kill_gpu_worker": partial(_to_role, "gpu-worker", KILL),
    "kill_cpu_worker": partial(_to_role, "cpu-worker", KILL),
    "kill_reconciler": partial(_to_role, "reconciler", KILL),
    "kill_trainer": partial(_to_trainer, KILL),
    "term_gpu_worker": partial(_to_role, "gpu-worker", signal.SIGTERM),
    "deploy": _deploy,
    "freeze_gpu_worker": partial(_freeze, "gpu-worker", LONG_S),
    "freeze_gpu_worker_shortly": partial(_freeze, "gpu-worker", SHORT_S),
    "freeze_machine": _freeze_machine,
    "freeze_api": partial(_freeze, "api", 6.0),
    "valkey_loses_all": _valkey_loses_all,
    "valkey_frozen": _valkey_frozen,
    "valkey_down": partial(_down, "broker", KILL, 6.0),
    "trainer_segfault": partial(_to_trainer, signal.SIGSEGV),
    "trainer_hangs": partial(_to_trainer, trainer.HANG),
    "trainer_frozen": partial(_to_trainer, signal.SIGSTOP),
    "trainer_gpu_oom": partial(_to_trainer, trainer.GPU_OOM),
    "trainer_garbage": partial(_to_trainer, trainer.GARBAGE),
    "doubled_deliveries": _doubled_deliveries,
    "clock_jump": _clock_jump,
    "kill_supervisor": _kill_supervisor,
    "postgres_restart": partial(_down, "postgres", signal.SIGINT, 1.0),
    "postgres_immediate": partial(_down, "postgres", signal.SIGQUIT, 1.0),
    "postgres_killed": partial(_down, "postgres", KILL, 1.0),
    "s3_killed": partial(_down, "s3", KILL, 1.0),
    "s3_down": partial(_down, "s3", KILL, 6.0),
    "workspace_full": partial(_full, "workspace"),
    "storage_full": partial(_full, "storage"),
    "machine_full": partial(_full, "machine"),
    "database_full": partial(_full, "database"),
    "storage_read_only": _storage_read_only,
}
