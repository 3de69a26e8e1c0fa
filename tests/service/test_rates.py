"""Limits of requests: exact in one process, shared by several through the broker, and nobody's trouble without one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
import redis
import structlog

from service.api import rates as module
from service.api.rates import WINDOW_S, Rates, client_url
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.servers import redis_server
from tests.service.conftest import FakeClock, assert_problem, served
from tests.service.test_access import client, key
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

NOWHERE = "redis+socket:///nowhere/broker.sock"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_EVERY_S", 0.02)
    monkeypatch.setattr(module, "SILENCE_AFTER_FAILURE_S", 0.05)
    # What is not answered in time is not counted; on a busy machine a broker may take seconds.
    monkeypatch.setattr(module, "TIMEOUT_S", 30.0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(50):
        while not condition():
            await asyncio.sleep(0.01)


def test_when_to_come_back_is_told_to_the_second(clock: FakeClock) -> None:
    chance = random.Random(5)

    async def work() -> None:
        rates = Rates(NOWHERE, clock)
        for turn in range(300):
            name, limit = f"n{turn}", chance.randint(1, 8)
            for _ in range(chance.randint(1, 4)):  # a past of bursts
                for _ in range(chance.randint(0, limit)):
                    rates.hit(name, limit)
                clock.advance(chance.randint(0, 50))
            while rates.hit(name, limit).is_within:
                pass
            refused = rates.look(name, limit)
            assert refused.remaining == 0
            clock.advance(refused.retry_after_s - 1)
            assert refused.retry_after_s == 1 or not rates.look(name, limit).is_within
            clock.advance(1)
            assert rates.hit(name, limit).is_within
        await rates.close()

    run(work)


def test_no_minute_has_more_than_the_limit_and_a_half(clock: FakeClock) -> None:
    """A sliding minute is judged by two windows: what it lets through is the limit, if what comes is spread evenly."""

    async def work() -> None:
        rates, passed = Rates(NOWHERE, clock), []
        for second in range(600):
            passed += [second for _ in range(3) if rates.hit("n", 60).is_within]
            clock.advance(1)
        for start in range(540):
            assert sum(start <= second < start + WINDOW_S for second in passed) <= 60
        assert len(passed) >= 540
        await rates.close()

    run(work)


def test_processes_count_together(clock: FakeClock) -> None:
    async def work(url: str) -> None:
        first, second = Rates(url, clock), Rates(url, clock)
        for _ in range(6):
            assert first.hit("k", 10).is_within
        await until(lambda: first._sharing is None)  # it has told the broker
        assert second.hit("k", 10).remaining == 9  # until they have told each other
        await until(lambda: second.look("k", 10).remaining == 3)
        for _ in range(3):
            assert second.hit("k", 10).is_within
        assert not second.hit("k", 10).is_within
        await until(lambda: second._sharing is None)
        assert first.hit("k", 10).remaining == 3
        await until(lambda: first.look("k", 10).remaining == 0)
        assert first.look("other", 10).remaining == 10
        clock.advance(WINDOW_S / 2 + (WINDOW_S - clock.now().timestamp() % WINDOW_S))
        third = Rates(url, clock)  # one that comes later learns of the minute before, too
        third.hit("k", 10)
        await until(lambda: third.look("k", 10).remaining == 3)
        for rates in (first, second, third):
            await rates.close()

    with redis_server() as url:
        run(lambda: work(url))
        with redis.Redis.from_url(client_url(url)) as broker:
            left = [broker.ttl(name) for name in broker.keys("sam3:rate:*")]
    assert left
    assert all(0 < seconds <= module.KEPT_FOR_S for seconds in left)


def test_nothing_is_counted_twice_when_everything_happens_at_once(clock: FakeClock) -> None:
    async def work(url: str) -> None:
        crowd = [Rates(url, clock) for _ in range(4)]
        for _ in range(50):
            for rates in crowd:
                for name in ("a", "b"):
                    assert rates.hit(name, 10_000).is_within
            await asyncio.sleep(0.002)
        for rates in crowd:
            await until(lambda: rates._sharing is None)  # noqa: B023 - used at once
        for rates in crowd:
            rates.hit("a", 10_000)
            await until(lambda: rates._sharing is None)  # noqa: B023 - used at once
        assert crowd[-1].look("a", 10_000).remaining == 10_000 - 204
        for rates in crowd:
            await rates.close()

    with redis_server() as url:
        run(lambda: work(url))


def test_without_a_broker_each_counts_for_itself_and_says_so_once(clock: FakeClock, tmp_path: Path) -> None:
    async def work() -> None:
        with structlog.testing.capture_logs() as logs:
            rates = Rates(f"redis+socket://{tmp_path}/broker.sock", clock)
            for _ in range(3):
                assert rates.hit("k", 3).is_within
            assert not rates.hit("k", 3).is_within
            await until(lambda: rates._is_alone)
            await asyncio.sleep(0.3)
            assert not rates.hit("k", 3).is_within
        assert [each["event"] for each in logs] == ["rates_not_shared"]
        await rates.close()

    run(work)


def test_a_broker_that_comes_back_is_told_what_was_counted(clock: FakeClock, tmp_path: Path) -> None:
    async def work() -> None:
        with redis_server() as url:
            pass  # was there, and is gone
        rates = Rates(url, clock)
        rates.hit("k", 10)
        await until(lambda: rates._is_alone)
        rates.hit("k", 10)
        with redis_server() as url:
            rates._broker_url, rates._broker = url, None
            await until(lambda: not rates._is_alone)
            with redis.Redis.from_url(client_url(url)) as broker:
                [name] = broker.keys("sam3:rate:k:*")
                assert broker.get(name) == b"2"
            await rates.close()

    run(work)


def test_a_broker_that_stalls_has_nothing_counted_twice(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)

    async def work(url: str) -> None:
        rates = Rates(url, clock)
        rates.hit("k", 1000)
        await until(lambda: not rates._unshared)
        with redis.Redis.from_url(client_url(url)) as broker:
            pid = int(broker.info()["process_id"])
            os.kill(pid, signal.SIGSTOP)
            try:
                for _ in range(50):
                    rates.hit("k", 1000)
                await until(lambda: rates._is_alone)
            finally:
                os.kill(pid, signal.SIGCONT)
            rates.hit("k", 1000)
            await until(lambda: not rates._unshared and not rates._is_alone)
            [name] = broker.keys("sam3:rate:k:*")
            assert int(broker.get(name)) <= 52
        await rates.close()

    with redis_server() as url:
        run(lambda: work(url))


def test_limits_hold_for_all_processes_together(tmp_path: Path) -> None:
    with redis_server() as url:
        settings = Settings(
            data_dir=tmp_path, broker_url=url, require_keys=True, requests_per_minute=8, max_failed_keys=3
        )
        upgrade(settings)
        with served(settings) as one, served(settings) as two, client(one, key(one, "a")) as ours:
            there = f"http://{two.address[0]}:{two.address[1]}/v1/me"
            for _ in range(5):
                assert ours.get("/v1/me").status_code == 200
            answers = []
            for _ in range(20):
                answers.append(ours.get(there))
                if answers[-1].status_code == 429:
                    break
                time.sleep(0.1)
            assert len(answers) <= 5
            refused = answers[-1]
            assert_problem(refused, 429, "too_many_requests")
            assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
            assert refused.headers["ratelimit-policy"] == '"key";q=8;w=60'
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            wrong = {"Authorization": "Bearer sam3_wrong"}
            for _ in range(3):
                assert one.client.get("/v1/me", headers=wrong).status_code == 401
            assert one.client.get("/v1/me", headers=wrong).status_code == 429
            assert two.client.get("/v1/me", headers=wrong).status_code == 401
            wait_until(lambda: two.client.get("/v1/me", headers=wrong).status_code == 429, 10)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis+socket:///run/b.sock", "unix:///run/b.sock"),
        ("redis+socket:///run/b.sock?virtual_host=2", "unix:///run/b.sock?db=2"),
        ("redis://:p@h:6379/1", "redis://:p@h:6379/1"),
        ("rediss://h/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://h/0?ssl_cert_reqs=required"),
    ],
)
def test_urls_of_celery_are_understood(given: str, expected: str) -> None:
    assert client_url(given) == expected
