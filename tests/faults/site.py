"""The service as processes that a campaign breaks, and that are started again as a supervisor of services would."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from service.shared.settings import Settings
from tests.faults.clock import FILE as CLOCK
from tests.faults.worker import JOURNAL
from tests.servers import S3Server, free_port, postgres_in, redis_in, s3_in, tethered

if TYPE_CHECKING:
    from collections.abc import Mapping

RESTART_S = 0.5
CLONE_NEWNS = 0x20000
MIB = 2**20
# The protocol's times, scaled down together; a lease outlasts what a busy machine takes for a heartbeat.
TIMES = {
    "heartbeat_interval_s": 0.7,
    "self_fence_s": 5,
    "kill_grace_s": 1.5,
    "lease_timeout_s": 8,
    "poll_interval_s": 2,
    "reconcile_interval_s": 0.5,
    "republish_interval_s": 3,
    "retry_backoff_s": 0.2,
    "retry_backoff_max_s": 1,
    "terminate_grace_s": 6,
    "storage_retry_s": 30,
    "ingest_max_attempts": 100,
    "work_max_attempts": 20,
    "stream_heartbeat_s": 2,
}
GPU_WORKERS = 3
ROLES = {
    "api": "service.cli api",
    "gpu-worker": "tests.faults.worker --queue gpu",
    "cpu-worker": "tests.faults.worker --queue cpu",
    "predictor": "tests.faults.worker --queue predict",
    "reconciler": "tests.faults.reconciler",
}


def unshare_mounts() -> bool:
    """Keep what is mounted from now on to this process and its children; whether that, and mounting, is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS) != 0:
        return False
    return _mount("--make-rprivate", "/")


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@dataclass
class Disk:
    """A folder that is a small file system of its own, which can be full or read-only for a while."""

    path: Path
    size_bytes: int

    def mount(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not _mount("-t", "tmpfs", "-o", f"size={self.size_bytes},mode=755", "campaign", str(self.path)):
            raise RuntimeError(f"cannot mount {self.path}, which must not fill the machine's own disk")

    def fill(self) -> int:
        """Leave no byte; how many there were."""
        taken = 0
        ballast = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for piece in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    taken += os.write(ballast, bytes(piece))
        os.close(ballast)
        return taken

    def release(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def set_writable(self, is_so: bool) -> bool:
        """Whether it could be done: not while a file is open for writing."""
        return _mount("-o", f"remount,{'rw' if is_so else 'ro'}", str(self.path))


class Program:
    """A command that is started again half a second after its end, unless it is held down."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._environment = os.environ | (environment or {})
        self._start_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def hold(self, seconds: float) -> None:
        """Do not start it again before so many seconds have passed."""
        self._start_at = time.monotonic() + seconds

    def tick(self) -> None:
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.process = None
            self._start_at = max(self._start_at, now + RESTART_S)
        if self.process is None and now >= self._start_at:
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self.starts += 1

    def stop(self, signum: int, timeout_s: float) -> None:
        if self.process is None:
            return
        self.process.send_signal(signum)
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass
class Site:
    """One installation; used from one thread, whose end kills all of it."""

    folder: Path
    no_progress_timeout_s: float
    has_disks: bool
    programs: dict[str, Program] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)
    broker_folder: Path = Path()
    broker_socket: Path = Path()
    settings: Settings = field(init=False)
    worker_count = 0

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "data"
        self.journal = self.folder / "journal"
        self.clock = self.folder / "clock"
        self.journal.touch()
        self.clock.write_text("0")
        (self.folder / "logs").mkdir()

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def environment(self, values: Mapping[str, object]) -> dict[str, str]:
        own = {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
        return own | {JOURNAL: str(self.journal), CLOCK: str(self.clock), "OMP_NUM_THREADS": "1"}

    def python(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        command = tethered([sys.executable, "-m", *arguments], signal.SIGKILL, drop=False)
        self.programs[name] = Program(name, command, self.log(name), environment)

    def mount(self) -> None:
        """Make the disks; where that is not allowed they are plain folders, and no fault may touch them."""
        for disk in self.disks.values():
            if self.has_disks:
                disk.mount()
            else:
                disk.path.mkdir(parents=True, exist_ok=True)

    def tick(self) -> None:
        for program in self.programs.values():
            program.tick()

    def pids(self, role: str) -> list[int]:
        """Living processes of a role, in a stable order."""
        raise NotImplementedError

    def services(self) -> list[int]:
        """Processes of the product."""
        return [pid for role in ROLES for pid in self.pids(role)]

    def workers(self) -> list[int]:
        """Those of the services that are workers."""
        return [pid for role in ("gpu-worker", "cpu-worker", "predictor") for pid in self.pids(role)]

    def close(self) -> None:
        raise NotImplementedError


class Production(Site):
    """Two APIs, a reconciler and workers on PostgreSQL, Valkey and an S3 server."""

    worker_count = GPU_WORKERS + 1

    def start(self) -> None:
        homes = {name: self.folder / name for name in ("postgres", "valkey", "s3")}
        self.folder.chmod(0o755)
        self.disks = {
            "machine": Disk(self.data_dir, 512 * MIB),
            "workspace": Disk(self.data_dir / "workspace", 256 * MIB),
            "storage": Disk(homes["s3"] / "blobs", 512 * MIB),
            "database": Disk(homes["postgres"], 768 * MIB),
        }
        for home in homes.values():
            home.mkdir()
        self.mount()
        command, url = postgres_in(homes["postgres"])
        self.programs["postgres"] = Program("postgres", command, self.log("postgres"))
        self.broker_folder, self.broker_socket = homes["valkey"], homes["valkey"] / "broker.sock"
        valkey = tethered(redis_in(homes["valkey"]), signal.SIGKILL, drop=False)
        self.programs["broker"] = Program("broker", valkey, self.log("broker"))
        address = f"127.0.0.1:{free_port()}"
        gateway, root = s3_in(homes["s3"], address)
        self.programs["s3"] = Program("s3", tethered(gateway, signal.SIGKILL, drop=False), self.log("s3"), root)
        values = {
            "data_dir": self.data_dir,
            "database_url": url,
            "broker_url": f"redis+socket://{self.broker_socket}",
            "storage_url": f"s3://{S3Server.bucket}",
            "storage_endpoint": f"http://{address}",
            "no_progress_timeout_s": self.no_progress_timeout_s,
            **TIMES,
        }
        os.environ.update(S3Server.credentials)
        self.settings = Settings(**values)
        environment = self.environment(values)
        self._migrate(environment)
        for number in (1, 2):
            port = free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self.python(f"api-{number}", ["service.cli", "api"], environment | {"SAM3_PORT": str(port)})
        self.python("reconciler", ["tests.faults.reconciler"], environment)
        for number in range(1, GPU_WORKERS + 1):
            self.python(f"gpu-worker-{number}", ["tests.faults.worker", "--queue", "gpu"], environment)
        self.python("cpu-worker", ["tests.faults.worker", "--queue", "cpu"], environment)

    def _migrate(self, environment: Mapping[str, str]) -> None:
        deadline = time.monotonic() + 60
        while True:
            self.tick()
            done = subprocess.run(
                [sys.executable, "-m", "service.cli", "migrate"],
                env=os.environ | environment,
                check=False,
                capture_output=True,
            )
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(done.stderr.decode())
            time.sleep(0.5)

    def pids(self, role: str) -> list[int]:
        return [
            program.pid
            for name, program in self.programs.items()
            if (name == role or name.rpartition("-")[0] == role) and program.pid is not None
        ]

    def close(self) -> None:
        servers = ("postgres", "broker", "s3")
        for name, program in self.programs.items():
            if name not in servers and program.process is not None:
                program.process.send_signal(signal.SIGTERM)
        for name, program in self.programs.items():
            if name not in servers:
                program.stop(signal.SIGTERM, 20)
        for name in servers:
            self.programs[name].stop(signal.SIGINT if name == "postgres" else signal.SIGKILL, 20)


class Embedded(Site):
    """`service.embedded`, whose children it starts again itself."""

    worker_count = GPU_WORKERS + 2

    def start(self) -> None:
        self.disks = {
            "machine": Disk(self.data_dir, 768 * MIB),
            "workspace": Disk(self.data_dir / "workspace", 256 * MIB),
            "storage": Disk(self.data_dir / "storage", 512 * MIB),
        }
        self.mount()
        self.broker_folder, self.broker_socket = self.data_dir / "broker", self.data_dir / "broker.sock"
        port = free_port()
        self.urls.append(f"http://127.0.0.1:{port}")
        counts = ",".join(["1"] * GPU_WORKERS)
        values = {
            "data_dir": self.data_dir,
            "no_progress_timeout_s": self.no_progress_timeout_s,
            **TIMES,
        }
        self.settings = Settings(**values)
        environment = self.environment(values | {"worker_gpus": counts})
        self.python("embedded", ["tests.faults.embedded", "--port", str(port)], environment)

    def pids(self, role: str) -> list[int]:
        supervisor = self.programs["embedded"].pid
        if supervisor is None:
            return []
        if role == "embedded":
            return [supervisor]
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(supervisor).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    words = " ".join(child.cmdline())
                    if "worker.tether" not in words and self._is(role, words):
                        found.append(child.pid)
        return sorted(found)

    @staticmethod
    def _is(role: str, words: str) -> bool:
        if role == "broker":
            return "valkey-server" in words or "redis-server" in words
        return role in ROLES and f"-um {ROLES[role]}" in words

    def close(self) -> None:
        self.programs["embedded"].stop(signal.SIGTERM, 40)
