"""An upload in parts against a real server process that is killed again and again."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import random
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from service.main import create_app
from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.servers import free_port
from tests.service.conftest import FakeClock, FakeQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART = 2**20
CONTENT = random.Random(7).randbytes(20 * PART + 12_345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KILLS = 10
PATIENCE_S = 120


# Forked from a process that has imported everything: a start costs no more than what is tested.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def serve(settings: Settings) -> None:
    uvicorn.run(create_app(settings), port=settings.port, log_config=None)


@contextlib.contextmanager
def server(settings: Settings) -> Iterator[None]:
    """The API as a process that answers, until it is killed."""
    process = processes.Process(target=serve, args=(settings,))
    process.start()
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{settings.port}/livez")
                break
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.join()


def sender(client: httpx.Client, upload: dict[str, Any], done: threading.Event) -> None:
    """What a patient client does: whatever happens, ask what is there, and go on."""
    url = f"/v1/uploads/{upload['id']}"
    while not done.is_set():
        try:
            seen = client.get(url).raise_for_status().json()
            there = {part["number"] for part in seen["parts"]}
            missing = [n for n in range(1, seen["part_count"] + 1) if n not in there]
            for number in missing:
                piece = CONTENT[(number - 1) * PART :][:PART]
                client.put(f"{url}/parts/{number}", content=slowly(piece)).raise_for_status()
            if client.post(f"{url}/complete").raise_for_status().json()["sha256"] == SHA256:
                done.set()
        except httpx.TransportError:
            time.sleep(0.02)


def slowly(piece: bytes) -> Iterator[bytes]:
    """In pieces, so that a kill finds a part half sent more often than not."""
    for at in range(0, len(piece), 2**18):
        yield piece[at : at + 2**18]
        time.sleep(0.03)


def test_an_upload_survives_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=free_port())
    upgrade(settings)
    chance = random.Random()
    done = threading.Event()
    with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=30) as client:
        with server(settings):
            body = {"filename": "a.zip", "bytes": len(CONTENT), "part_bytes": PART, "sha256": SHA256}
            upload = client.post("/v1/uploads", json=body).json()
        thread = threading.Thread(target=sender, args=(client, upload, done))
        thread.start()
        try:
            for _ in range(KILLS):
                with server(settings):
                    done.wait(chance.uniform(0.05, 0.5))
            with server(settings):
                assert done.wait(PATIENCE_S)
                source = {"type": "upload", "upload_id": upload["id"]}
                dataset = client.post("/v1/datasets", json={"source": source}).raise_for_status().json()
                assert (dataset["sha256"], dataset["bytes"]) == (SHA256, len(CONTENT))
        finally:
            done.set()
            thread.join()
    storage = Storage(settings)
    sweep(settings, storage)
    (key,) = [*storage.list("datasets"), *storage.list("uploads")]
    assert hashlib.sha256(b"".join(storage.get_range(key))).hexdigest() == SHA256
    assert list(settings.staging_dir.iterdir()) == []


def sweep(settings: Settings, storage: Storage) -> None:
    """A pass and two sweeps of the reconciler at a time when every leftover is old and the upload itself is not yet."""
    clock = FakeClock()
    later = SystemClock().now() + timedelta(seconds=settings.staging_retention_s + 60)
    clock.elapsed_s = (later - clock.now()).total_seconds()
    database = Database(settings, clock, FakeQueue())
    reconciler = Reconciler(settings, database, storage, FakeQueue(), clock)
    reconciler.run_once()
    reconciler.sweep()
    reconciler.sweep()
    database.close()
