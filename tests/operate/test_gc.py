"""`sam3-service gc` with real databases and stores: it deletes what nothing needs, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import time
import tracemalloc
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.operate.gc import UnrecognisedError, collect
from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.usecases.stored_files import FOLDERS, damaged
from tests.everything import counts
from tests.operate.conftest import Installation, filled, set_environment
from tests.service.conftest import FakeQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import S3Server

DAY_S = 86400.0
ORPHANS = (
    "datasets/ds_gone/archive",
    "datasets/ds_gone/preview/0.webp",
    "uploads/upload_gone/1-part_x",
    "jobs/job_gone/e1/step-1/adapter_model.safetensors",
    "exports/exp_gone/e1/peft.zip",
    "predictions/pred_gone/image",
    "comparisons/cmp_gone/e1/report.html",
)


def put(storage: Storage, *keys: str) -> None:
    for key in keys:
        storage.put(key, [b"12345"], size_bytes=5)


def keys_of(storage: Storage) -> set[str]:
    return {key for folder in FOLDERS for key in storage.list(folder)}


def age(settings: Settings, seconds: float = 2 * DAY_S) -> None:
    """Make everything that is stored look so old."""
    at = time.time() - seconds
    for path in settings.data_dir.rglob("*"):
        if path.is_file() and "storage" in path.parts:
            os.utime(path, (at, at))


def run(installation: Installation, **options: Any) -> Any:
    values = {"older_than_s": DAY_S, "dry_run": False} | options
    return collect(installation.settings, installation.database, installation.storage, **values)


def test_what_no_row_names_goes_and_everything_else_stays(full: Installation) -> None:
    kept, rows = keys_of(full.storage), counts(full.database)
    put(full.storage, *ORPHANS)
    age(full.settings)
    put(full.storage, "jobs/job_young/e1/file")
    seen = run(full, dry_run=True)
    assert (seen.orphans.count, seen.orphans.bytes) == (len(ORPHANS), 5 * len(ORPHANS))
    assert set(seen.orphans.first) == set(ORPHANS)
    assert keys_of(full.storage) == kept | set(ORPHANS) | {"jobs/job_young/e1/file"}
    done = run(full)
    assert (done.orphans.count, done.objects) == (len(ORPHANS), len(kept) + len(ORPHANS))
    assert (done.missing.count, done.altered.count) == (0, 0)
    assert keys_of(full.storage) == kept | {"jobs/job_young/e1/file"}
    assert counts(full.database) == rows
    assert run(full).orphans.count == 0


def test_rows_without_their_files_are_told_by_kind_and_stay(full: Installation) -> None:
    rows = counts(full.database)
    with full.database.read() as unit:
        (checkpoint,) = unit.checkpoints.list(full.running_job)
    key = checkpoint.files[0].storage_key
    full.storage.delete(key)
    report = f"jobs/{full.running_job}/artifacts/report.html"
    full.storage.delete(report)
    put(full.storage, report)
    found = run(full)
    assert found.missing.first == [f"checkpoint {checkpoint.id} {key}"]
    assert found.altered.first == [f"artifact {full.running_job} {report}"]
    for folder in FOLDERS:
        full.storage.delete_prefix(folder)
    kinds = {
        "dataset",
        "upload",
        "upload_part",
        "checkpoint",
        "artifact",
        "model",
        "export",
        "prediction",
        "comparison",
    }
    found = run(full, dry_run=True)
    assert found.missing.count > 15
    assert {line.split()[0] for line in _all_missing(full)} == kinds
    assert counts(full.database) == rows


def _all_missing(full: Installation) -> list[str]:
    return [f"{file.kind} {file.owner}" for file, _ in damaged(full.database, full.storage)]


def test_a_file_that_comes_to_be_named_while_it_looks_stays(
    full: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"jobs/{full.running_job}/e1/late"
    put(full.storage, key)
    age(full.settings)
    listed = Storage.pages

    def pages(self: Storage, prefix: str, **options: Any) -> Iterator[Any]:
        for page in listed(self, prefix, **options):
            if prefix == "jobs":
                with full.database.write() as unit:
                    job = unit.jobs.get(full.running_job)
                    file = full.storage.put(key, [b"12345"], size_bytes=5)
                    unit.artifacts.publish(job.id, job.epoch, "late", {"late": file})
            yield page

    monkeypatch.setattr(Storage, "pages", pages)
    assert run(full).orphans.count == 0
    assert full.storage.exists(key)


def test_a_file_that_is_withdrawn_while_it_looks_is_not_missed(
    full: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Storage.pages
    with full.database.read() as unit:
        job = unit.jobs.get(full.running_job)
        (checkpoint,) = unit.checkpoints.list(job.id)

    def pages(self: Storage, prefix: str, **options: Any) -> Iterator[Any]:
        if prefix == f"jobs/{job.id}":  # as its worker does once a newer one is there
            with full.database.write() as unit:
                gone = unit.checkpoints.remove(job.id, job.epoch, [checkpoint.id])
            full.storage.delete_all(gone)
        yield from listed(self, prefix, **options)

    monkeypatch.setattr(Storage, "pages", pages)
    assert run(full).missing.count == 0


def test_nothing_is_deleted_where_the_database_knows_nothing_of_storage(full: Installation, tmp_path: Path) -> None:
    age(full.settings)
    kept = keys_of(full.storage)
    other = Settings(data_dir=tmp_path / "other", storage_url=full.settings.storage_url)
    upgrade(other)
    database = Database(other, SystemClock(), FakeQueue())
    wrong = Installation(other, database, full.storage, "")
    with pytest.raises(UnrecognisedError, match="SAM3_DATABASE_URL or SAM3_STORAGE_URL"):
        run(wrong)
    reconciler = Reconciler(other, database, full.storage, FakeQueue(), SystemClock())
    reconciler.sweep()
    reconciler.sweep()
    assert keys_of(full.storage) == kept
    assert run(wrong, dry_run=True).orphans.count == len(kept)
    assert run(wrong, force=True).orphans.count == len(kept)
    assert keys_of(full.storage) == set()
    database.close()


def test_leftovers_of_this_machine_go_and_those_in_use_stay(full: Installation) -> None:
    root = full.settings.data_dir / "workspace"
    dead, alive = root / "worker-1-dead", root / "worker-2-alive"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    old = root / "datasets-another-boot"
    old.mkdir()
    staged = full.settings.staging_dir / "broken"
    staged.parent.mkdir(exist_ok=True)
    staged.write_text("half")
    unfinished = full.settings.data_dir / "storage" / "jobs" / "file#1"
    unfinished.write_text("half")
    for path in (staged, unfinished):
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)
    (full.settings.staging_dir / "young").touch()
    with (alive / "lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        seen = run(full, dry_run=True)
        assert set(seen.local.first) == {str(path) for path in (dead, old, staged, unfinished)}
        assert all(path.exists() for path in (dead, old, staged, unfinished))
        assert run(full).local.count == 4
        assert [path.exists() for path in (dead, old, staged, unfinished, alive)] == [False] * 4 + [True]
    assert (full.settings.staging_dir / "young").exists()


def test_the_command_prints_json_and_its_status_says_what_it_found(
    full: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(full.storage, *ORPHANS)
    age(full.settings)
    set_environment(monkeypatch, data_dir=full.settings.data_dir, database_url=full.settings.database_url)
    result = CliRunner().invoke(app, ["gc", "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["orphans"]["count"] == len(ORPHANS)
    assert "jobs: " in result.stderr
    full.storage.delete(f"jobs/{full.running_job}/artifacts/report.html")
    result = CliRunner().invoke(app, ["gc"])
    assert result.exit_code == 1
    assert f"artifact {full.running_job} jobs/" in result.stdout
    assert CliRunner().invoke(app, ["gc", "--older-than", "0.5"]).exit_code == 2
    full.settings.staging_dir.mkdir(exist_ok=True)
    (full.settings.staging_dir / "loop").symlink_to("loop")  # which no call can look at
    result = CliRunner().invoke(app, ["gc"])
    assert (result.exit_code, "symbolic links" in result.stderr.splitlines()[-1]) == (2, True)
    set_environment(monkeypatch, data_dir=tmp_path / "nothing", database_url=f"sqlite:///{tmp_path}/nothing.db")
    result = CliRunner().invoke(app, ["gc"])
    assert (result.exit_code, "no schema yet" in result.stderr) == (2, True)


def test_the_command_deletes_only_what_is_old_enough_and_what_is_known_unless_it_is_forced(
    full: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def count(*arguments: str) -> int:
        result = CliRunner().invoke(app, ["gc", "--json", *arguments])
        assert result.exit_code == 0, result.stderr
        return int(json.loads(result.stdout)["orphans"]["count"])

    put(full.storage, *ORPHANS)
    age(full.settings)
    set_environment(monkeypatch, data_dir=full.settings.data_dir, database_url=full.settings.database_url)
    assert count("--older-than", "1000000") == 0
    assert count("--older-than", "1") == len(ORPHANS)
    other = Settings(data_dir=full.settings.data_dir, database_url=f"sqlite:///{tmp_path}/empty.db")
    upgrade(other)
    set_environment(monkeypatch, data_dir=other.data_dir, database_url=other.database_url)
    kept = keys_of(full.storage)
    assert CliRunner().invoke(app, ["gc", "--older-than", "1"]).exit_code == 2
    assert keys_of(full.storage) == kept
    age(full.settings)
    assert count("--older-than", "1", "--force") == len(kept)
    assert not keys_of(full.storage)


def test_on_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    with filled(Settings(data_dir=tmp_path / "data", **s3.settings("gc")), tmp_path) as full:
        kept = keys_of(full.storage)
        put(full.storage, *ORPHANS)
        assert run(full).orphans.count == 0
        assert run(full, older_than_s=-60).orphans.count == len(ORPHANS)
        assert keys_of(full.storage) == kept
        full.storage.delete_prefix(f"jobs/{full.running_job}")
        assert run(full).missing.count == 2


def test_a_million_files_fit_into_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer of them, to save time: what it takes must not depend on how many there are."""
    many = 20_000
    with filled(Settings(data_dir=tmp_path / "data"), tmp_path) as full:
        listed: Callable[..., Any] = obstore.list

        def pages(store: Any, prefix: str, **options: Any) -> Iterator[list[dict[str, Any]]]:
            yield from listed(store, prefix, **options)
            if prefix == "jobs":
                at = datetime(2020, 1, 1, tzinfo=UTC)
                for start in range(0, many, 1000):
                    yield [
                        {"path": f"jobs/job_{number:012}/e1/adapter_model.safetensors", "size": 1, "last_modified": at}
                        for number in range(start, start + 1000)
                    ]

        monkeypatch.setattr(obstore, "list", pages)
        tracemalloc.start()
        try:
            assert run(full, dry_run=True).orphans.count == many
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * 2**20
