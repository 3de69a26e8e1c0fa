"""Backups taken while work goes on, and what a restored service makes of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import obstore
import pytest
from typer.testing import CliRunner

from sam3_lora.synthetic.__main__ import main as draw
from service.cli import app
from service.operate.backup import BackupError, make_backup
from service.operate.gc import collect
from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.errors import StorageError
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.shared.vault import Vault
from tests.everything import counts
from tests.operate.conftest import Installation, filled, set_environment
from tests.servers import _postgres_binaries, fresh_database
from tests.service.conftest import FakeQueue, add_job, served
from tests.stack import started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import S3Server

TABLES_THAT_GROW = {"tallies", "jobs", "job_events", "webhook_deliveries", "checkpoints", "checkpoint_files"}


@contextlib.contextmanager
def busy(full: Installation) -> Iterator[list[str]]:
    """Work that goes on: jobs come in, and the running one replaces its checkpoint again and again. Ids of the jobs."""
    stop, made = threading.Event(), []

    def work() -> None:
        published: str | None = None
        number = 0
        with full.database.read() as unit:
            running = unit.jobs.get(full.running_job)
            epoch = running.epoch
        while not stop.is_set():
            number += 1
            made.append(add_job(full.database, running.dataset_id))
            key = f"jobs/{full.running_job}/e{epoch}/step-{number}/adapter"
            file = full.storage.put(key, [b"weights"], size_bytes=7)
            manifest = CheckpointManifest("epoch", number, number, None, None, files={"adapter": file})
            with full.database.write() as unit:
                earlier, published = published, unit.checkpoints.publish(full.running_job, epoch, manifest).id
            if earlier is not None:
                with full.database.write() as unit:
                    gone = unit.checkpoints.remove(full.running_job, epoch, [earlier])
                full.storage.delete_all(gone)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: len(made) > 2)
        yield made
    finally:
        stop.set()
        thread.join()


def check(restored: Settings, full: Installation, rows: dict[str, int], before: list[str]) -> list[str]:
    """That a restored installation is complete and its running job goes on; which checkpoints of that job it lacks."""
    database, storage = Database(restored, SystemClock(), FakeQueue()), Storage(restored)
    found = counts(database)
    assert {name: count for name, count in found.items() if name not in TABLES_THAT_GROW} == {
        name: count for name, count in rows.items() if name not in TABLES_THAT_GROW
    }
    assert all(found[name] >= rows[name] for name in rows)
    with database.read() as unit:
        assert len(unit.jobs.get_all(before)) == len(before)
        (endpoint,) = unit.webhooks.list(limit=10, descending=True, after=None, before=None)[0]
        assert Vault(restored).open(endpoint.secret)
    summary = collect(restored, database, storage, older_than_s=-3600, dry_run=True)
    assert all(f"/{full.running_job}/e1/step-" in each for each in summary.missing.first)
    assert summary.altered.first == []
    with served(restored) as api:
        (model,) = api.client.get("/v1/models").json()["data"]
        archive = api.client.get(f"/v1/models/{model['id']}/export").raise_for_status().content
        assert hashlib.sha256(archive).hexdigest() == model["archive"]["sha256"]
    fast = restored.model_copy(update={"lease_timeout_s": 0.5, "retry_backoff_s": 0.01})
    database.close()
    database = Database(fast, SystemClock(), FakeQueue())
    reconciler = Reconciler(fast, database, storage, FakeQueue(), SystemClock())
    for _ in range(4):  # its worker is not there any more
        reconciler.run_once()
        time.sleep(0.2)
    with database.write() as unit:
        job = unit.jobs.claim("w-9")
        assert job is not None
        assert (job.id, job.state, job.attempt) == (full.running_job, JobState.RUNNING, 2)
        assert unit.checkpoints.list(job.id)
    database.close()
    return summary.missing.first


def test_a_backup_of_a_busy_embedded_service_is_whole(tmp_path: Path) -> None:
    with filled(Settings(data_dir=tmp_path / "data"), tmp_path) as full:
        rows = counts(full.database)
        orphan = "jobs/job_gone/e1/file"
        full.storage.put(orphan, [b"x"], size_bytes=1)
        with busy(full) as made:
            for _ in range(2):  # the second brings the first up to date
                before = list(made)
                wait_until(lambda before=before: len(made) > len(before) + 2)
                done = make_backup(full.settings, tmp_path / "backup")
    assert done.missing == []
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {"backup.json", "service.db", "storage"}
    assert not Storage(Settings(data_dir=tmp_path / "backup")).exists(orphan)
    assert done.files == sum(path.is_file() for path in (tmp_path / "backup" / "storage").rglob("*"))
    shutil.rmtree(full.settings.data_dir)
    shutil.copytree(tmp_path / "backup", full.settings.data_dir)
    assert check(full.settings, full, rows, before) == []


def test_the_command_keeps_the_key_and_refuses_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(Settings(data_dir=tmp_path / "data"), tmp_path) as full:
        (full.settings.data_dir / "secret.key").write_text("a key")
        set_environment(monkeypatch, data_dir=full.settings.data_dir)
        result = CliRunner().invoke(app, ["backup", str(tmp_path / "made")])
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / "made" / "secret.key").read_text() == "a key"
        assert "--data-dir" in result.stdout
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").touch()
        with pytest.raises(BackupError, match="holds something else"):
            make_backup(full.settings, tmp_path / "other")
        with pytest.raises(BackupError, match="is part of what is to be copied"):
            make_backup(full.settings, full.settings.data_dir / "storage" / "backup")
        full.storage.delete(f"jobs/{full.running_job}/artifacts/report.html")
        result = CliRunner().invoke(app, ["backup", str(tmp_path / "incomplete")])
        assert (result.exit_code, "1 files are missing" in result.stderr) == (1, True)
        assert "report.html" in (tmp_path / "incomplete" / "backup.json").read_text()
        monkeypatch.setenv("SAM3_STORAGE_URL", "s3://bucket")
        result = CliRunner().invoke(app, ["backup", str(tmp_path / "made")])
        assert (result.exit_code, "docs/operations.md" in result.stderr) == (1, True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_that_fails_leaves_the_earlier_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = "jobs/job_gone/e1/file"
    with filled(Settings(data_dir=tmp_path / "data"), tmp_path) as full:
        make_backup(full.settings, tmp_path / "backup")
        good = contents(tmp_path / "backup")
        add_job(full.database)
        (tmp_path / "backup" / "storage" / orphan).parent.mkdir(parents=True)
        (tmp_path / "backup" / "storage" / orphan).write_bytes(b"x")  # as of rows that have gone since

        def fail_to_look(*_: object) -> None:
            raise StorageError("unreadable")

        with monkeypatch.context() as patched:
            patched.setattr("service.operate.backup.damaged", fail_to_look)
            with pytest.raises(StorageError):
                make_backup(full.settings, tmp_path / "backup")
        assert contents(tmp_path / "backup") == good | {f"storage/{orphan}": b"x"}
        full_disk = subprocess.run(
            [sys.executable, "-m", "service.cli", "backup", str(tmp_path / "backup")],
            env=os.environ | {"SAM3_DATA_DIR": str(full.settings.data_dir)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert full_disk.returncode == 1
        progress, reason = full_disk.stderr.splitlines()
        assert progress == "0 files copied"
        assert reason.startswith("The database could not be copied")
        assert contents(tmp_path / "backup") == good | {f"storage/{orphan}": b"x"}
        make_backup(full.settings, tmp_path / "backup")
        assert not (tmp_path / "backup" / "storage" / orphan).exists()
        assert contents(tmp_path / "backup")["service.db"] != good["service.db"]


def test_postgresql_and_a_bucket_are_restored_as_the_guide_says(
    postgres_server_url: str, s3: S3Server, tmp_path: Path
) -> None:
    binaries = _postgres_binaries()
    if binaries is None or not (binaries / "pg_dump").exists():
        pytest.skip("there is no pg_dump beside the server")

    def postgres(program: str, *arguments: str) -> None:
        subprocess.run([binaries / program, *arguments], check=True, capture_output=True, timeout=120)

    with fresh_database(postgres_server_url) as url, fresh_database(postgres_server_url) as empty:
        values = {"data_dir": tmp_path / "data", "database_url": url, **s3.settings("live")}
        with filled(Settings(**values), tmp_path) as full:
            rows = counts(full.database)
            with busy(full) as made:
                before = list(made)
                copy_bucket(full.settings, "live", "restored")
                dump = tmp_path / "sam3.dump"
                postgres("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={plain(url)}")
                copy_bucket(full.settings, "live", "restored")
        postgres("pg_restore", "--no-owner", "--exit-on-error", f"--dbname={plain(empty)}", str(dump))
        restored = full.settings.model_copy(
            update={"database_url": empty, "data_dir": tmp_path / "new", **s3.settings("restored")}
        )
        check(restored, full, rows, before)


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def copy_bucket(settings: Settings, source: str, target: str) -> None:
    """What `aws s3 sync` does: copy what is not there yet, delete nothing."""
    stores = [
        Storage(settings.model_copy(update={"storage_url": f"s3://sam3/{prefix}"}))._store
        for prefix in (source, target)
    ]
    there = {meta["path"] for page in obstore.list(stores[1]) for meta in page}
    for page in obstore.list(stores[0]):
        for meta in page:
            if meta["path"] not in there:
                with contextlib.suppress(FileNotFoundError):  # replaced by its worker meanwhile
                    obstore.put(stores[1], meta["path"], bytes(obstore.get(stores[0], meta["path"]).bytes()))


QUICK: dict[str, Any] = {
    "lora": {"rank": 4},
    "training": {"max_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "use_amp": False, "num_workers": 0},
}
LONG = QUICK | {"training": QUICK["training"] | {"max_epochs": 30}, "evaluation": {"every_epochs": 30}}
FAST = {
    "heartbeat_interval_s": 0.5,
    "self_fence_s": 3,
    "kill_grace_s": 1,
    "lease_timeout_s": 6,
    "poll_interval_s": 2,
    "reconcile_interval_s": 0.5,
    "retry_backoff_s": 0.5,
}


@pytest.mark.slow
def test_a_real_job_goes_on_where_the_backup_was_taken(tmp_path: Path) -> None:
    """Train, back up while the next job trains, lose everything, restore, and have the job end with a model."""
    archive, data_dir = tmp_path / "shapes.zip", tmp_path / "data"
    draw([str(archive), "--train", "4", "--valid", "1", "--concepts", "heart", "cross"])

    def post(client: httpx.Client, dataset_id: str, config: dict[str, Any]) -> str:
        body = {"name": "b", "base_model": "sam3-tiny", "dataset_id": dataset_id, "config": config}
        return str(client.post("/jobs", json=body).raise_for_status().json()["id"])

    def job(client: httpx.Client, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/jobs/{job_id}").raise_for_status().json()
        return found

    with started(tmp_path, data_dir, **FAST) as service:
        client = httpx.Client(base_url=f"{service.url}/v1", timeout=60)
        with archive.open("rb") as file:
            dataset = client.post("/datasets", data={"name": "s"}, files={"file": file}).raise_for_status().json()
        ended = post(client, dataset["id"], QUICK)
        wait_until(lambda: job(client, ended)["is_terminal"], 200)
        running = post(client, dataset["id"], LONG)
        wait_until(lambda: client.get(f"/jobs/{running}/checkpoints").json()["data"], 200)
        command = [sys.executable, "-m", "service.cli", "backup", str(tmp_path / "backup")]
        environment = os.environ | {"SAM3_DATA_DIR": str(data_dir)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        assert job(client, running)["status"] == "running"
        children = service.children()
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(child.is_running() for child in children), 10)
        client.close()
    shutil.rmtree(data_dir)
    (tmp_path / "ready").unlink()
    shutil.copytree(tmp_path / "backup", data_dir)
    with started(tmp_path, data_dir, **FAST) as service:
        checked = subprocess.run(
            [sys.executable, "-m", "service.cli", "gc", "--dry-run"], env=environment, check=False, capture_output=True
        )
        assert checked.returncode == 0, checked.stdout
        client = httpx.Client(base_url=f"{service.url}/v1", timeout=60)
        wait_until(lambda: job(client, running)["is_terminal"], 240)
        done = job(client, running)
        assert (done["status"], done["attempt"]) == ("succeeded", 2)
        reasons = [event["message"] for event in client.get(f"/jobs/{running}/events").json()["data"]]
        assert any("lost" in reason for reason in reasons)
        for job_id in (ended, running):
            model = client.get(f"/models/{job(client, job_id)['result']['model_id']}").json()
            adapter = client.get(f"/models/{model['id']}/export").raise_for_status().content
            assert hashlib.sha256(adapter).hexdigest() == model["archive"]["sha256"]
            assert "adapter_config.json" in zipfile.ZipFile(io.BytesIO(adapter)).namelist()
        client.close()
