"""Several processes of one run on one machine: the leader starts the others and answers for all of them.

Followers are the leader's own command line once more, with the environment variables of `torchrun` and `--leader`. They
end with the leader, hear no signals (what the leader is asked all ranks agree on), and the first failure of one is the
failure of the run. Loads no training framework: followers start while the leader still loads its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from sam3_lora.events import MAX_LINE_BYTES, Event, EventType, Level
from sam3_lora.parent import die_with_parent

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ADDRESS, INTERFACE = "127.0.0.1", "lo"  # who could reach a run's ports could change what it computes
GOOD_ENDINGS = (None, 0, 11)  # still running, done, interrupted (`training.process`)
TICK_S = 0.1
SETTLE_S = 1.0  # one that fails takes others with it: after so long all have, and the first can be told
BLAME_S = 5.0
LEAVE_S = 10.0


def follow(leader: int) -> None:
    """Make this process a follower of the one that started it, whose process id this is."""
    die_with_parent(leader)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked from birth, as of the leader


class Crew:
    """The followers of this process; a context manager that leaves none behind. Of one process it does nothing.

    To be entered in the main thread: the kernel ends followers with the thread that started them.
    """

    def __init__(self, processes: int, on_failure: Callable[[Event], None]) -> None:
        """Prepare a run of so many processes, this one included.

        Args:
            on_failure: told the error of the first follower that fails, in a thread of its own, since the main one may
                wait for that follower; has to end this process.
        """
        self.listener: socket.socket | None = None
        """Where the store of `torch.distributed` is to be served; followers may connect before it is."""
        self._processes, self._on_failure = processes, on_failure
        self._followers: list[_Follower] = []
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        if self._processes > 1:
            self.listener = socket.create_server((ADDRESS, 0), backlog=self._processes)
            _set_environment(self.listener.getsockname()[1], self._processes)
            heard = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                for rank in range(1, self._processes):
                    self._followers.append(_Follower(rank))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, heard)
            threading.Thread(target=self._watch, name="followers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss(LEAVE_S)

    def has_result(self) -> None:
        """The run has succeeded: how followers end no longer matters."""
        self._leaving.set()

    def let_others_fail_first(self) -> None:
        """Wait as long as it takes to hear of a follower whose end may be why this process failed."""
        if self._followers:
            time.sleep(BLAME_S)

    def dismiss(self, patience_s: float) -> None:
        """Judge followers no more, and kill those that have not ended after so many seconds."""
        self._leaving.set()
        deadline = time.monotonic() + patience_s
        for follower in self._followers:
            follower.end(deadline)

    def exit_soon(self, code: int) -> None:
        """End this process at the latest so many seconds later, if leaving a group without its others takes longer."""
        if self._followers:
            timer = threading.Timer(LEAVE_S, os._exit, (code,))
            timer.daemon = True
            timer.start()

    def _watch(self) -> None:
        while not any(follower.has_failed for follower in self._followers):
            if self._leaving.wait(TICK_S):
                return
        if not self._leaving.wait(SETTLE_S):
            self._on_failure(min((f for f in self._followers if f.has_failed), key=_Follower.blamelessness).failure())


class _Follower:
    """One process, its log with its rank before each line, and the error that it reports."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._error: Event | None = None
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:], "--leader", str(os.getpid())],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read_events, self._copy_log)]
        for thread in self._threads:
            thread.start()

    @property
    def has_failed(self) -> bool:
        return self._error is not None or self._process.poll() not in GOOD_ENDINGS

    def blamelessness(self) -> int:
        """Low for what cannot be the consequence of another's end: a named error, then a signal."""
        if self._error is not None and self._error.data.get("code") != "internal":
            return 0
        return 1 if (self._process.returncode or 0) < 0 else 2

    def failure(self) -> Event:
        """What it reported, else what its end says."""
        if self._error is not None:
            return self._error
        code = self._process.returncode
        who = f"the process of rank {self._rank}"
        data: dict[str, Any] = {"code": "internal", "hint": "The end of the job's log says where.", "retryable": True}
        if code == -signal.SIGKILL:
            message = f"{who} was killed (SIGKILL), most often because the machine ran out of memory"
            data["hint"] = "Lower training.num_workers or batch_size, or add memory."
        elif code < 0:
            message = f"{who} crashed ({signal.Signals(-code).name})"
        else:
            message = f"{who} exited with status {code}"
            data["retryable"] = False
        return Event(EventType.ERROR, message, data, Level.ERROR)

    def end(self, deadline: float) -> None:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(TICK_S)  # its loaders may hold the pipes open a little longer

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in iter(partial(self._process.stdout.readline, MAX_LINE_BYTES + 1), b""):
            with contextlib.suppress(ValueError, KeyError):
                event = Event.from_line(line)
                if event.type is EventType.ERROR:
                    self._error = event

    def _copy_log(self) -> None:
        assert self._process.stderr is not None
        prefix = f"[rank {self._rank}] ".encode()
        most = select.PIPE_BUF - len(prefix) - 1  # written at once, whoever else writes
        for line in iter(partial(self._process.stderr.readline, most), b""):
            with contextlib.suppress(OSError):  # read on, or the follower would wait
                os.write(2, prefix + line.rstrip(b"\n") + b"\n")


def _set_environment(port: int, processes: int) -> None:
    """What `torchrun` would tell the processes, this one included."""
    os.environ.update(
        MASTER_ADDR=ADDRESS,
        MASTER_PORT=str(port),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        RANK="0",
        LOCAL_RANK="0",
        # The store is served apart from the ranks, which all are its clients (torch/distributed/rendezvous.py).
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, INTERFACE)
    # Each torch would otherwise start a thread for every core. `training.num_threads` comes before it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
