"""One campaign: start the service, let users work while faults strike, let the dust settle, look at what is left."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from service.shared.clock import SystemClock
from service.shared.queue import CeleryQueue
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.faults import invariants, kinds
from tests.faults.clients import Crowd
from tests.faults.invariants import COUNTED, Evidence, Violation
from tests.faults.journal import Journal
from tests.faults.kinds import Field
from tests.faults.site import Embedded, Production

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.plan import Backend, Plan, PlannedFault
    from tests.faults.site import Site

TICK_S = 0.05
START_TIMEOUT_S = 120.0
PATIENCE_S = 10.0  # with a fault whose target is not there
LONGEST_GAP_S = 15.0  # between two faults, however slowly jobs come


@dataclass
class Struck:
    """A fault that was done, and what it hit; `hit` None: nothing was there in time."""

    number: int
    kind: str
    at_s: float
    hit: dict[str, Any] | None


@dataclass
class Outcome:
    seconds: float
    created: int
    struck: list[Struck]
    violations: list[Violation]
    seen: dict[str, Any]
    observed: list[dict[str, Any]] = field(default_factory=list)
    """What clients noted besides: answers that were errors of the server."""

    def counts(self) -> dict[str, int]:
        found = Counter(violation.counts_as for violation in self.violations)
        return {name: found[name] for name in COUNTED}


class Campaign:
    def __init__(
        self, plan: Plan, backend: Backend, folder: Path, *, settle_s: float, no_progress_s: float, disks: bool
    ) -> None:
        """Used from one thread.

        Args:
            settle_s: without any news of a job after the last fault, until those that are left count as stuck.
            disks: mounts are this process's own (`unshare_mounts`).
        """
        self._plan = plan
        self._settle_s = settle_s
        site = Embedded if backend == "embedded" else Production
        self._site: Site = site(folder, no_progress_s, disks)
        self._journal = Journal(self._site.journal)
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._struck: list[Struck] = []
        self._began = time.monotonic()
        self._over_at = float("inf")

    def run(self, say: Callable[[str], object] = lambda _: None) -> Outcome:
        archive = self._site.folder / "shapes.zip"
        _draw(archive)
        try:
            self._site.start()
            if not self._wait_until(self._is_whole, START_TIMEOUT_S):
                raise RuntimeError(f"not up in time: see {self._site.folder}")
            self._began = time.monotonic()
            say(f"up: {' '.join(self._site.urls)}")
            crowd = Crowd(self._site.urls, self._plan.jobs, archive, lambda: time.monotonic() > self._over_at)
            crowd.start()
            self._strike_all(crowd, say)
            self._settle(crowd)
            return self._look(crowd)
        finally:
            self._undo_all()
            self._site.close()

    def _is_up(self) -> bool:
        """Whether all APIs answer, and everything they need; nobody asks for predictions here."""
        try:
            health = [httpx.get(f"{url}/readyz", timeout=5).json()["checks"] for url in self._site.urls]
        except (httpx.HTTPError, ValueError):
            return False
        return all(set((checks | {"predict_workers": "ok"}).values()) == {"ok"} for checks in health)

    def _is_whole(self) -> bool:
        """Whether it is up, and exactly the workers that run are listed."""
        if not self._is_up():
            return False
        try:
            listed = httpx.get(f"{self._site.urls[0]}/v1/workers", timeout=5).json()["data"]
        except (httpx.HTTPError, KeyError):
            return False
        return len(listed) == len(self._site.workers()) == self._site.worker_count

    def _wait_until(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline:
                return False
            self._tick()
        return True

    def _tick(self) -> None:
        self._site.tick()
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            if entry[1]() is False:  # not possible yet
                self._later(0.2, entry[1])
        time.sleep(TICK_S)

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        self._due.append((time.monotonic() + seconds, action))

    def _undo_all(self) -> None:
        due, self._due = self._due, []
        for _, action in due:
            action()

    def _strike_all(self, crowd: Crowd, say: Callable[[str], object]) -> None:
        field_ = Field(self._site, self._journal, self._later, crowd.job_ids)
        missed = 0
        for fault in [*self._plan.faults, *self._plan.spares]:
            if fault.number >= len(self._plan.faults) + missed:
                return
            self._wait_until(partial(crowd.has_created, fault.after_jobs), LONGEST_GAP_S)
            self._wait_until(lambda: False, fault.delay_s)
            hit = self._strike(field_, fault)
            self._struck.append(Struck(fault.number, fault.kind, round(time.monotonic() - self._began, 1), hit))
            missed += hit is None
            say(f"{self._struck[-1].at_s:7.1f} s  {crowd.notes.created:4d} jobs  {fault.kind}  {hit}")

    def _strike(self, field_: Field, fault: PlannedFault) -> dict[str, Any] | None:
        hit: dict[str, Any] | None = None

        def is_hit() -> bool:
            nonlocal hit
            hit = kinds.strike(field_, fault)
            return hit is not None

        self._wait_until(is_hit, PATIENCE_S)
        return hit

    def _settle(self, crowd: Crowd) -> None:
        """Wait for what faults began to be over and for all jobs; then start everything anew, once, in good order."""
        self._wait_until(lambda: not self._due, 120)
        # As jobs come one after the other, what is left of them takes its time: it is over once nothing moves.
        moved, before = time.monotonic(), -1
        while not crowd.is_done and time.monotonic() - moved < self._settle_s:
            self._tick()
            ended = sum(each.ended_as is not None for each in list(crowd.notes.promised.values()))
            if (now := crowd.notes.created + ended) != before:
                moved, before = time.monotonic(), now
        self._over_at = time.monotonic()
        self._wait_until(lambda: crowd.is_done, 60)
        for pid in self._site.pids("embedded") or self._site.services():
            psutil.Process(pid).send_signal(signal.SIGTERM)
        self._wait_until(lambda: not self._is_up(), 20)
        self._wait_until(self._is_whole, START_TIMEOUT_S)

    def _look(self, crowd: Crowd) -> Outcome:
        self._journal.read()
        settings = self._site.settings
        clock = SystemClock()
        queue = CeleryQueue(settings, clock)
        database = Database(settings, clock, queue)
        workers = self._site.workers()
        fatal = {
            struck.hit["job"]
            for struck in self._struck
            if struck.hit is not None and struck.kind in ("trainer_gpu_oom", "trainer_garbage")
        }
        notes = crowd.notes
        lives = list(self._journal.lives.values())
        storage = Storage(settings)
        evidence = Evidence(settings, database, storage, notes.promised, lives, frozenset(fatal), workers)
        seconds = time.monotonic() - self._began
        violations = invariants.check(evidence)
        for each in notes.faults:
            counts_as = AS_TOLD.get(each["invariant"])
            if counts_as is not None:
                facts = {name: value for name, value in each.items() if name != "invariant"}
                violations.append(Violation(counts_as, f"clients: {each['invariant']}", facts))
        database.close()
        queue.close()
        ends = Counter(each.ended_as or "none" for each in notes.promised.values())
        seen = {
            "jobs by end": dict(ends),
            "trainers started": len(lives),
            "answers": dict(notes.answers),
            "events followed": notes.events_followed,
            "streams connected again": notes.reconnections,
            "processes started": {name: program.starts for name, program in self._site.programs.items()},
            "clients' notes": Counter(each["invariant"] for each in notes.faults),
        }
        return Outcome(round(seconds, 1), notes.created, self._struck, violations, seen, notes.faults)


AS_TOLD = {"lost": "lost", "doubled": "doubled", "stream": "doubled", "create_refused": "lost", "client_failed": "lost"}
"""What violations that clients noted count as; the rest is told beside."""


def by_kind(struck: list[Struck]) -> dict[str, dict[str, int]]:
    """How often each kind of fault struck, hit something, and hit a trainer that ran."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"struck": 0, "hit": 0, "hit_trainers": 0})
    for each in struck:
        hit = each.hit or {}
        found[each.kind]["struck"] += 1
        found[each.kind]["hit"] += each.hit is not None
        found[each.kind]["hit_trainers"] += len(hit.get("trainers", [])) + (hit.get("trainer") is not None)
    return dict(sorted(found.items()))


def machine() -> dict[str, Any]:
    return {
        "cpus": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def report(outcome: Outcome, about: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Everything, as JSON."""
    return {
        **about,
        "machine": machine(),
        "seconds": outcome.seconds,
        "jobs": outcome.created,
        "faults": sum(struck.hit is not None for struck in outcome.struck),
        "counts": outcome.counts(),
        "faults_by_kind": by_kind(outcome.struck),
        "seen": outcome.seen,
        "invariants": [check.__name__ for check in invariants.CHECKS],
        "violations": [asdict(violation) for violation in outcome.violations],
        "observed": outcome.observed,
        "struck": [asdict(struck) for struck in outcome.struck],
        "plan": plan.to_dict(),
    }


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"# Faults: {found['backend']}, seed {found['seed']}",
        "",
        f"{found['jobs']} jobs, {found['faults']} faults that hit something, {found['seconds']:.0f} s; "
        + ", ".join(f"{name} {value}" for name, value in found["machine"].items()),
        "",
        "The seed gives jobs, kinds of faults, targets, order and delays; what the machine does meanwhile it does not.",
        "",
        "| fault | struck | hit something | running trainers hit |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {each['struck']} | {each['hit']} | {each['hit_trainers']} |"
        for kind, each in found["faults_by_kind"].items()
    ]
    lines += ["", *(f"- {name}: {value}" for name, value in found["seen"].items()), "", "| must be 0 | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in found["counts"].items()]
    lines += ["", *(f"- {each['counts_as']}: {each['invariant']}: {each['facts']}" for each in found["violations"])]
    return "\n".join(lines) + "\n"


def _draw(archive: Path) -> None:
    options = ["--train", "4", "--valid", "2", "--concepts", "heart", "cross"]
    subprocess.run([sys.executable, "-m", "sam3_lora.synthetic", str(archive), *options], check=True)
    assert zipfile.is_zipfile(archive)
