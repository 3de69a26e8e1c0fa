"""One piece of work at a time, and no announcement lost, however the rings fall."""

from __future__ import annotations

import threading
import time

import pytest

from worker.station import Station

NEVER_S = 3600.0


class Work:
    """Things to do, and a record of how they were done."""

    def __init__(self, amount: int = 0, seconds: float = 0.0) -> None:
        self.left = amount
        self.done = 0
        self.most_at_once = 0
        self._now = 0
        self._seconds = seconds
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.left += 1

    def run_next(self) -> bool:
        with self._lock:
            if not self.left:
                return False
            self.left -= 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self._seconds)
        with self._lock:
            self._now -= 1
            self.done += 1
        return True


def test_a_ring_works_off_everything_that_is_due() -> None:
    work = Work(5)
    Station(work.run_next, draining=threading.Event(), poll_interval_s=NEVER_S).ring()
    assert work.done == 5


def test_many_ringers_one_worker_and_nothing_forgotten() -> None:
    work = Work(seconds=0.001)
    station = Station(work.run_next, draining=threading.Event(), poll_interval_s=NEVER_S)

    def add_and_ring() -> None:
        for _ in range(50):
            work.add()
            station.ring()

    ringers = [threading.Thread(target=add_and_ring) for _ in range(8)]
    for ringer in ringers:
        ringer.start()
    for ringer in ringers:
        ringer.join()
    assert work.left == 0
    assert work.done == 400
    assert work.most_at_once == 1


def test_idle_it_polls() -> None:
    draining = threading.Event()
    work = Work()
    station = Station(work.run_next, draining=draining, poll_interval_s=0.02)
    station.start()
    time.sleep(0.1)
    work.add()
    deadline = time.monotonic() + 5
    while not work.done:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert station.close(1)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_leaves_it_and_it_works_on(error: type[BaseException]) -> None:
    calls = 0

    def fail_once() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return False

    station = Station(fail_once, draining=threading.Event(), poll_interval_s=NEVER_S)
    station.ring()
    station.ring()
    assert calls == 2


def test_draining_begins_nothing() -> None:
    draining = threading.Event()
    work = Work(2, seconds=0.2)
    station = Station(work.run_next, draining=draining, poll_interval_s=NEVER_S)
    ringer = threading.Thread(target=station.ring)
    ringer.start()
    time.sleep(0.05)
    assert not station.close(0.01)  # still at it
    assert station.close(5)
    assert (work.done, work.left) == (1, 1)
    station.ring()
    assert work.done == 1
    ringer.join()


def test_kinds_take_turns_and_none_starves() -> None:
    done: list[str] = []
    jobs, comparisons = Work(6), Work(3)

    def run(name: str, work: Work) -> bool:
        found = work.run_next()
        if found:
            done.append(name)
        return found

    station = Station(
        lambda: run("job", jobs),
        lambda: run("comparison", comparisons),
        draining=threading.Event(),
        poll_interval_s=NEVER_S,
    )
    station.ring()
    assert done == ["job", "comparison"] * 3 + ["job"] * 3


def test_draining_begins_nothing_of_another_kind() -> None:
    draining = threading.Event()
    other = Work(1)

    def drain() -> bool:
        draining.set()
        return True

    Station(drain, other.run_next, draining=draining, poll_interval_s=NEVER_S).ring()
    assert (other.done, other.left) == (0, 1)
