"""Engines under the conditions in which databases are first opened."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from service.shared.db.engine import create_engine

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS, THREADS = 40, 6  # without the retried switch to WAL, about one round in ten failed


def test_many_first_connections_to_a_new_file_all_succeed(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def open_and_write(url: str) -> None:
        engine = create_engine(url)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (x INTEGER)")
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)
        finally:
            engine.dispose()

    for number in range(ROUNDS):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        threads = [threading.Thread(target=open_and_write, args=(url,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
