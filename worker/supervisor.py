"""Run a trainer as a child process and account for all of it: its lines, its log, its limits and its end.

Knows nothing of jobs, databases or storage. The child runs in a session of its own, dies with this worker
(`worker.tether`), sees no secrets, and can be trusted with nothing: its output is bounded wherever it is read.
"""

from __future__ import annotations

import contextlib
import enum
import os
import queue
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.events import MAX_LINE_BYTES, Event, EventType
from worker import memory, tether
from worker.pipes import LineReader, LogCopier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping

TICK_S = 0.1
MEMORY_LOOK_S = 1.0
MAX_QUEUED_LINES = 64
KILL_TIMEOUT_S = 5.0

# What a trainer needs of the worker's environment. Nothing else is passed on: no database, broker or storage secrets.
ENVIRONMENT = re.compile(
    r"PATH|HOME|LANG|TZ|PYTHONPATH|VIRTUAL_ENV|LD_LIBRARY_PATH|XDG_CACHE_HOME"
    r"|(LC|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|OMP|MKL|HF|TRITON)_.*"
)
# The way to the hub of weights, in which there may be a password.
WAY_OUT = re.compile(r"SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(?i:https?_proxy|no_proxy)")
# For trainers that send metrics to trackers.
OF_TRACKERS = re.compile(r"(MLFLOW|WANDB|DATABRICKS)_.*")
OFFLINE = "HF_HUB_OFFLINE"
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")


class Ask(enum.StrEnum):
    """What a running trainer is asked to do."""

    FINISH = "finish"  # end the step, evaluate, save, exit 0
    SAVE_AND_EXIT = "save_and_exit"  # save a checkpoint and exit 11
    DIE = "die"  # at once: what it does no longer counts


class Cut(enum.StrEnum):
    """Which limit ended a trainer."""

    RUNTIME = "runtime"
    NO_PROGRESS = "no_progress"
    MEMORY = "memory"


@dataclass(frozen=True)
class Limits:
    """Bounds on one trainer."""

    runtime_s: float
    """Wall-clock time."""
    silence_s: float
    """Longest time without an event."""
    grace_s: float
    """Time to save after SIGTERM, before SIGKILL."""
    log_bytes: int
    """The log is cut after so many bytes."""
    memory_bytes: int | None = None
    """Of all its processes together, each page once; looked at every second."""


@dataclass(frozen=True)
class Ending:
    """How a trainer ended; `asked` is the last thing it was asked, `cut` the limit that it broke."""

    returncode: int
    asked: Ask | None = None
    cut: Cut | None = None
    error: Event | None = None
    result: Event | None = None


class Trainer:
    """A trainer process, from its start to the end of the last process of its group; a context manager."""

    def __init__(
        self, command: list[str], *, log: Path, temporary: Path, limits: Limits, trackers: bool = False
    ) -> None:
        """Spawn the process from the calling thread, whose end would kill it; `trackers`: with the way to them."""
        self._limits = limits
        self._process = subprocess.Popen(
            tether.command(command, expendable=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=scrubbed(os.environ, trackers=trackers) | {"TMPDIR": str(temporary), "PYTHONFAULTHANDLER": "1"},
            start_new_session=True,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise AssertionError("all three are pipes")
        self._pipes = (stdin, stdout, stderr)
        os.set_blocking(stdin.fileno(), False)
        self._events = LineReader(stdout.fileno(), max_line_bytes=MAX_LINE_BYTES, max_lines=MAX_QUEUED_LINES)
        self._log = LogCopier(stderr.fileno(), log, max_bytes=limits.log_bytes)

    @property
    def pid(self) -> int:
        """Process id of the trainer, which is also that of its group and session."""
        return self._process.pid

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_group()
        self._events.abandoned.set()
        self._events.join(KILL_TIMEOUT_S)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()

    def renew(self) -> None:
        """Give the trainer one more lease; called after each successful heartbeat, from any thread."""
        # A full pipe means a trainer that does not read: it fences itself. A broken or closed one has ended.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ValueError):
            os.write(self._pipes[0].fileno(), b".")

    def supervise(self, on_event: Callable[[Event], None], ask: Callable[[], Ask | None]) -> Ending:
        """Hand over every event, in this thread, until the trainer has ended and its group is gone.

        Args:
            on_event: what it raises passes through; leaving the context then kills the trainer.
            ask: polled about ten times a second; a new answer is passed on to the process.
        """
        started = heard = weighed = time.monotonic()
        kill_at = float("inf")
        asked: Ask | None = None
        cut: Cut | None = None
        last: dict[EventType, Event] = {}
        while not self._has_exited():
            for event in self._arrived(TICK_S):
                heard = time.monotonic()
                last[event.type] = event
                on_event(event)
            now = time.monotonic()
            cut = cut or self._limit_reached(now - started, now - heard)
            if now - weighed >= MEMORY_LOOK_S:
                weighed = now
                if self._is_too_large():
                    cut, kill_at = Cut.MEMORY, now
            wanted = ask()
            if cut and wanted is not Ask.DIE:
                wanted = None if cut is Cut.MEMORY else Ask.SAVE_AND_EXIT  # saving takes memory
            # Before its first event a trainer may not have its signal handlers yet, and SIGUSR1 would kill it.
            if wanted not in (None, asked) and (wanted is not Ask.FINISH or last):
                asked = wanted
                kill_at = min(kill_at, now + self._tell(asked))
            if now >= kill_at:
                self._signal_group(signal.SIGKILL)
        self._kill_group()
        for event in self._remaining():
            last[event.type] = event
            if asked is not Ask.DIE:
                on_event(event)
        returncode = self._process.returncode
        return Ending(returncode, asked, cut, last.get(EventType.ERROR), last.get(EventType.RESULT))

    def _limit_reached(self, runtime_s: float, silence_s: float) -> Cut | None:
        if runtime_s > self._limits.runtime_s:
            return Cut.RUNTIME
        return Cut.NO_PROGRESS if silence_s > self._limits.silence_s else None

    def _is_too_large(self) -> bool:
        limit = self._limits.memory_bytes
        if limit is None:
            return False
        members = self._living()
        # The first costs nothing but counts shared pages for each; the second holds up the process.
        return memory.resident(members) > limit and memory.proportional(members) > limit

    def _tell(self, what: Ask | None) -> float:
        """Pass a request on; the seconds after which patience ends."""
        if what is Ask.DIE:
            return 0.0
        # To the trainer alone: its data loaders must live until the checkpoint is written.
        self._process.send_signal(signal.SIGUSR1 if what is Ask.FINISH else signal.SIGTERM)
        return float("inf") if what is Ask.FINISH else self._limits.grace_s

    def _arrived(self, timeout_s: float) -> Iterator[Event]:
        """The events at hand; waits for the first."""
        for number in range(MAX_QUEUED_LINES):  # then the clock and the requests are looked at again
            try:
                line = self._events.lines.get(number == 0, timeout_s)
            except queue.Empty:
                return
            # Anything may print to stdout; what is not an event is no reason to lose a run.
            with contextlib.suppress(ValueError, KeyError, RecursionError):
                yield Event.from_line(line)

    def _remaining(self) -> Iterator[Event]:
        while self._events.is_alive() or not self._events.lines.empty():
            yield from self._arrived(TICK_S)

    def _has_exited(self) -> bool:
        """Whether the trainer has exited. It is left unreaped, so that its group's number stays ours to signal."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self._process.returncode is not None or os.waitid(os.P_PID, self.pid, options) is not None

    def _kill_group(self) -> None:
        """Kill what is left of the group, see it gone, and reap the trainer.

        Raises:
            TimeoutError: if the kernel does not get rid of a process, so that nothing else is started beside it.
        """
        if self._process.returncode is not None:
            return
        deadline = time.monotonic() + KILL_TIMEOUT_S
        self._signal_group(signal.SIGKILL)
        while members := self._living():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {members} of the trainer do not end after SIGKILL")
            time.sleep(0.01)
            self._signal_group(signal.SIGKILL)  # also those born meanwhile
        self._process.wait()
        for reader in (self._events, self._log):
            reader.ended.set()
        self._log.join(KILL_TIMEOUT_S)

    def _living(self) -> list[int]:
        """Processes of the group that are not yet zombies."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended while we looked
                state, _, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
                if group == str(self.pid) and state not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def leave_hub_out(environment: MutableMapping[str, str]) -> None:
    """Take what opens the hub of weights out of an environment, and have libraries not ask it."""
    for name in HUB_TOKENS:
        environment.pop(name, None)
    environment[OFFLINE] = "1"


def scrubbed(environment: Mapping[str, str], *, trackers: bool = False) -> dict[str, str]:
    """The part of an environment that a trainer may see; `trackers`: one that sends metrics to some."""
    goes_out = trackers or environment.get(OFFLINE) != "1"
    passed = {
        name: value
        for name, value in environment.items()
        if ENVIRONMENT.fullmatch(name)
        or (goes_out and WAY_OUT.fullmatch(name))
        or (trackers and OF_TRACKERS.fullmatch(name))
    }
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | passed  # in which `worker.device` numbers GPUs; CUDA's own is by speed
