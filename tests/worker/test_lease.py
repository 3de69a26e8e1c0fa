"""Heartbeats: kept up, refused, late, and missing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import OperationalError

from service.shared.errors import LeaseLostError, StorageError
from service.shared.settings import Settings
from service.shared.states import JobRequest
from tests.stack import wait_until
from tests.worker.conftest import FAST
from worker.lease import Lease

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lease_settings(tmp_path: Path) -> Settings:
    times = {"heartbeat_interval_s": 0.05, "self_fence_s": 0.4, "kill_grace_s": 0.2, "lease_timeout_s": 1.0}
    return Settings(data_dir=tmp_path, **(FAST | times))


class Heart:
    """A database that answers heartbeats as it is told."""

    def __init__(self) -> None:
        self.beats = 0
        self.away = False
        self.lost = False
        self.delay_s = 0.0
        self.asked = JobRequest.STOP

    def beat(self) -> JobRequest | None:
        time.sleep(self.delay_s)
        if self.away:
            raise OperationalError("UPDATE", {}, Exception("away"))
        if self.lost:
            raise LeaseLostError("taken")
        self.beats += 1
        return self.asked if self.beats > 2 else None


def test_renews_and_hears_what_the_user_asks(lease_settings: Settings) -> None:
    heart, given = Heart(), []
    with Lease(heart.beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        lease.on_renewed = lambda: given.append(1)
        time.sleep(1.0)
        lease.check()
        assert lease.request is JobRequest.STOP
    assert 5 <= heart.beats == len(given)
    time.sleep(0.2)
    assert heart.beats == len(given)


def test_refusal_is_final(lease_settings: Settings) -> None:
    heart = Heart()
    with Lease(heart.beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        heart.lost = True
        time.sleep(0.2)
        heart.lost = False
        time.sleep(0.2)
        assert lease.is_lost
        with pytest.raises(LeaseLostError):
            lease.check()


def test_short_absence_of_the_database_is_survived_and_a_long_one_is_not(lease_settings: Settings) -> None:
    heart = Heart()
    with Lease(heart.beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        heart.away = True
        time.sleep(0.2)
        assert not lease.is_lost
        heart.away = False
        time.sleep(0.2)
        assert not lease.is_lost
        heart.away = True
        time.sleep(0.6)
        assert lease.is_lost


def test_late_answer_renews_the_lease_but_gives_the_trainer_no_new_time(lease_settings: Settings) -> None:
    heart, given = Heart(), []
    heart.delay_s = lease_settings.kill_grace_s + 0.05
    with Lease(heart.beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        lease.on_renewed = lambda: given.append(1)
        time.sleep(1.0)
        assert not lease.is_lost
    assert heart.beats > 0
    assert given == []


def test_counts_from_before_the_claim(lease_settings: Settings) -> None:
    long_ago = time.monotonic() - lease_settings.self_fence_s - 1
    with pytest.raises(LeaseLostError):
        Lease(Heart().beat, lease_settings, claimed_at=long_ago, name="job").check()


def test_insists_until_the_database_is_back(lease_settings: Settings) -> None:
    tries = 0

    def write() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OperationalError("UPDATE", {}, Exception("away"))
        return "written"

    with Lease(Heart().beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        assert lease.insist(write) == "written"


def test_insists_no_longer_than_the_lease_holds(lease_settings: Settings) -> None:
    def write() -> None:
        raise OperationalError("UPDATE", {}, Exception("away"))

    heart = Heart()
    heart.away = True
    with (
        Lease(heart.beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease,
        pytest.raises(LeaseLostError),
    ):
        lease.insist(write)


def test_what_is_to_be_stored_waits_for_storage_but_not_for_ever(lease_settings: Settings) -> None:
    settings = lease_settings.model_copy(update={"storage_retry_s": 0.3})
    tries: list[None] = []

    def store(successful_try: int) -> str:
        tries.append(None)
        if len(tries) < successful_try:
            raise StorageError("away")
        return "stored"

    with Lease(Heart().beat, settings, claimed_at=time.monotonic(), name="job") as lease:
        assert lease.insist(lambda: store(2)) == "stored"
        with pytest.raises(StorageError):
            lease.insist(lambda: store(100))
    assert 3 <= len(tries) < 10


def test_what_is_to_be_stored_of_a_cancelled_job_waits_for_nothing(lease_settings: Settings) -> None:
    tries: list[None] = []

    def store() -> None:
        tries.append(None)
        raise StorageError("away")

    settings = lease_settings.model_copy(update={"storage_retry_s": 60})
    heart = Heart()
    heart.asked = JobRequest.CANCEL
    with Lease(heart.beat, settings, claimed_at=time.monotonic(), name="job") as lease:
        wait_until(lambda: lease.request is JobRequest.CANCEL)
        with pytest.raises(StorageError):
            lease.insist(store)
    assert tries == [None]


def test_no_call_outlasts_what_it_is_passed_on_to(lease_settings: Settings) -> None:
    """It would write into a pipe that is closed by then, or into whatever has taken its number."""
    begun, is_closed, late = threading.Event(), threading.Event(), threading.Event()

    def renew() -> None:
        begun.set()
        is_closed.wait(0.3)
        if is_closed.is_set():
            late.set()

    with Lease(Heart().beat, lease_settings, claimed_at=time.monotonic(), name="job") as lease:
        with lease.passed_on(renew):
            assert begun.wait(10)
        is_closed.set()
        time.sleep(0.2)
    assert not late.is_set()
