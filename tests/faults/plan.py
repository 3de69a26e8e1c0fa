"""What a campaign will do, drawn from a seed: jobs, what users ask of them, and faults in their order."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tests.faults.trainer import REAL_RANK

Backend = Literal["embedded", "production"]

ANYWHERE = {
    "kill_api": 8,
    "kill_gpu_worker": 12,
    "kill_cpu_worker": 3,
    "kill_reconciler": 4,
    "kill_trainer": 10,
    "term_gpu_worker": 6,
    "deploy": 3,
    "freeze_gpu_worker": 6,
    "freeze_gpu_worker_shortly": 4,
    "freeze_machine": 4,
    "freeze_api": 2,
    "valkey_loses_all": 4,
    "valkey_frozen": 3,
    "trainer_segfault": 4,
    "trainer_hangs": 2,
    "trainer_frozen": 2,
    "trainer_gpu_oom": 4,
    "trainer_garbage": 3,
    "doubled_deliveries": 5,
    "clock_jump": 4,
}
ONLY: dict[Backend, dict[str, int]] = {
    "embedded": {"kill_supervisor": 5},
    "production": {
        "valkey_down": 3,
        "postgres_restart": 4,
        "postgres_immediate": 3,
        "postgres_killed": 4,
        "s3_killed": 5,
        "s3_down": 3,
    },
}
DISKS: dict[Backend, dict[str, int]] = {
    "embedded": {"workspace_full": 3, "storage_full": 3, "storage_read_only": 3, "machine_full": 3},
    "production": {"workspace_full": 3, "storage_full": 3, "machine_full": 3, "database_full": 3},
}
SPARES = ("kill_gpu_worker", "kill_api", "kill_reconciler", "kill_cpu_worker", "term_gpu_worker")
ACTIONS = {"cancel": 6, "stop": 4, "pause": 6, "retry": 3}


@dataclass(frozen=True)
class PlannedJob:
    number: int
    seed: int
    epochs: int
    action: str | None
    action_after_s: float
    is_followed: bool
    is_real: bool

    @property
    def config(self) -> dict[str, Any]:
        training = {"max_epochs": self.epochs, "batch_size": 4, "use_amp": False, "num_workers": 0}
        return {"lora": {"rank": REAL_RANK if self.is_real else 4}, "training": {**training, "keep_checkpoints": 2}}


@dataclass(frozen=True)
class PlannedFault:
    """`chance` picks the target among those there are; `after_jobs`: once so many were created, and a delay."""

    number: int
    kind: str
    after_jobs: int
    delay_s: float
    chance: float
    amount: float


@dataclass(frozen=True)
class Plan:
    jobs: list[PlannedJob]
    faults: list[PlannedFault]
    spares: list[PlannedFault]
    """Faults that always hit something, for those that found nothing to hit."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kinds(backend: Backend, *, disks: bool) -> dict[str, int]:
    """Weights by kind of fault."""
    return ANYWHERE | ONLY[backend] | (DISKS[backend] if disks else {})


def draw(seed: int, backend: Backend, *, jobs: int, faults: int, real: int, disks: bool) -> Plan:
    """The plan of a seed, always the same."""
    dice = random.Random(f"{seed} {backend}")
    weights = kinds(backend, disks=disks)
    # Of every kind one, before any comes twice by chance.
    chosen = dice.sample(list(weights), len(weights))[:faults]
    chosen += dice.choices(list(weights), list(weights.values()), k=faults - len(chosen))
    dice.shuffle(chosen)
    return Plan(
        [_job(dice, number, is_real=number >= jobs - real) for number in range(jobs)],
        [_fault(dice, number, kind, after_jobs=number * jobs // faults) for number, kind in enumerate(chosen)],
        [_fault(dice, faults + number, dice.choice(SPARES), after_jobs=0) for number in range(faults)],
    )


def _job(dice: random.Random, number: int, *, is_real: bool) -> PlannedJob:
    asked = dice.random() < 0.35 and not is_real
    return PlannedJob(
        number=number,
        seed=dice.randrange(2**31),
        epochs=1 if is_real else dice.choice((1, 2, 3, 5, 8)),
        action=dice.choices(list(ACTIONS), list(ACTIONS.values()))[0] if asked else None,
        action_after_s=dice.choice((0.0, 0.3, 1.0, 2.0, 4.0)),
        is_followed=dice.random() < 0.4,
        is_real=is_real,
    )


def _fault(dice: random.Random, number: int, kind: str, *, after_jobs: int) -> PlannedFault:
    return PlannedFault(number, kind, after_jobs, dice.uniform(0.0, 1.5), dice.random(), dice.random())
