"""The test servers: real, separate per test, and gone afterwards, even when the test process is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis

from tests.servers import fresh_database, postgres_server_url, redis_url  # noqa: F401


def test_databases_are_empty_and_separate(postgres_server_url: str) -> None:  # noqa: F811
    with fresh_database(postgres_server_url) as first, fresh_database(postgres_server_url) as second:
        with psycopg.connect(first.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE t (n int)")
        with psycopg.connect(second.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
        left_open = psycopg.connect(first.replace("+psycopg", ""))
    left_open.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(first.replace("+psycopg", ""))


def test_valkey_answers(redis_url: str) -> None:  # noqa: F811
    with redis.Redis.from_url(redis_url.replace("redis+socket", "unix")) as client:
        assert client.ping()
        assert client.dbsize() == 0


def test_servers_die_with_a_killed_test_process() -> None:
    code = """
import time
from tests.servers import postgres_server, redis_server
with postgres_server() as p, redis_server() as r:
    print(p.rsplit("=", 1)[1], r.removeprefix("redis+socket://"), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, socket = map(Path, process.stdout.readline().split())
        process.kill()
    deadline = time.monotonic() + 10
    while _users_of(folder) or _users_of(socket.parent):
        assert time.monotonic() < deadline, "a server outlived its test process"
        time.sleep(0.1)


def _users_of(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]
