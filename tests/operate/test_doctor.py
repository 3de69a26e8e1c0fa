"""`sam3-service doctor` against real servers, healthy and not."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import redis
from cryptography.fernet import Fernet
from typer.testing import CliRunner, Result

from service.cli import app
from service.operate import machine, neighbours
from service.operate.doctor import Process, examine
from service.shared.checks import Level
from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.db.models import WebhookEndpoint
from service.shared.ids import new_id
from service.shared.settings import Settings, load
from service.shared.unit_of_work import Database
from service.shared.vault import Vault
from service.shared.webhooks import MessageFormat
from tests.operate.conftest import set_environment
from tests.servers import fresh_database
from tests.service.conftest import FakeQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import S3Server


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An embedded service that was never started."""
    set_environment(monkeypatch, data_dir=tmp_path / "data", port=0, max_upload_bytes=2**30)
    return load()


@pytest.fixture
def production(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_server_url: str, redis_url: str, s3: S3Server
) -> Iterator[Settings]:
    """A migrated installation on PostgreSQL, Valkey and S3."""
    with fresh_database(postgres_server_url) as url:
        values = {"database_url": url, "broker_url": redis_url, "secret_key": Fernet.generate_key().decode()}
        values |= s3.settings(new_id("d"))
        set_environment(monkeypatch, data_dir=tmp_path, port=0, max_upload_bytes=2**30, **values)
        upgrade(load())
        yield load()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def found(check: str, process: Process | None = None) -> list[tuple[Level, str]]:
    return [(each.level, str(each)) for each in examine(process).findings if each.check == check]


def broker_client(settings: Settings) -> Any:
    return redis.Redis(unix_socket_path=settings.broker_url.removeprefix("redis+socket://"))


def test_a_machine_that_was_never_used_is_well_and_stays_untouched(embedded: Settings) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.stdout
    report = json.loads(result.stdout)
    assert (report["status"], report["process"]) == ("ok", "serve")
    assert {each["check"] for each in report["checks"]} >= {"settings", "data_dir", "space", "schema", "broker", "gpu"}
    assert not embedded.data_dir.exists()


@pytest.mark.parametrize("process", list(Process))
def test_production_is_well_for_every_process(production: Settings, process: Process) -> None:
    report = examine(process)
    assert [str(each) for each in report.findings if each.level is not Level.OK] == []
    assert {each.check for each in report.findings} >= {"schema", "connections", "clock", "keys", "broker", "storage"}


def test_the_table_says_what_to_do(production: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_REQUIRE_KEYS", "true")
    result = run()
    assert result.exit_code == 0
    assert "keys         warning  SAM3_REQUIRE_KEYS is set, but there is no key that is good" in result.stdout
    assert "-> sam3-service keys create" in result.stdout
    assert "For api: faults 0, warnings 1" in result.stdout
    assert run("--strict").exit_code == 1


def test_it_is_for_the_process_that_is_named(production: Settings) -> None:
    report = json.loads(run("--process", "reconciler", "--json").stdout)
    assert report["process"] == "reconciler"
    assert {"data_dir", "port"}.isdisjoint(each["check"] for each in report["checks"])


def test_wrong_settings_are_all_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_environment(monkeypatch, data_dir=tmp_path, port="x", self_fence_s=40, no_such="1")
    result = run("--json")
    assert result.exit_code == 2
    messages = [each["message"] for each in json.loads(result.stdout)["checks"]]
    assert len(messages) == 3
    for said in ("SAM3_PORT: ", "two trainers of one job", "SAM3_NO_SUCH: no such setting"):
        assert any(said in message for message in messages), messages


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-storage")
    set_environment(
        monkeypatch,
        data_dir=tmp_path,
        database_url="postgresql://u:canary-database@127.0.0.1:1/d",
        broker_url="redis://:canary-broker@127.0.0.1:1/0",
        storage_url="s3://bucket",
        storage_endpoint="http://127.0.0.1:1",
        secret_key=key,
    )
    for arguments in ([], ["--json"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "canary" not in result.output
        assert key not in result.output
        assert "127.0.0.1" in result.output


def test_what_hangs_is_told_and_keeps_nothing_else_from_being_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        set_environment(
            monkeypatch,
            data_dir=tmp_path,
            port=0,
            database_url=f"postgresql://u:p@127.0.0.1:{port}/d?connect_timeout=60",
            broker_url=f"redis://127.0.0.1:{port}/0",
        )
        monkeypatch.setattr("service.operate.doctor.CHECK_TIMEOUT_S", 1.0)
        begun = time.monotonic()
        report = examine(Process.API)
        assert time.monotonic() - begun < 15
    levels = {each.check: each.level for each in report.findings}
    assert (levels["database"], levels["broker"]) == (Level.FAULT, Level.FAULT)
    assert (levels["data_dir"], levels["storage"], levels["port"]) == (Level.OK, Level.OK, Level.OK)


def test_a_broker_that_drops_messages_or_is_shared_is_told(production: Settings) -> None:
    client = broker_client(production)
    client.config_set("maxmemory-policy", "allkeys-lru")
    for exchange, bound in (
        ("celery", "gpu"),
        ("celery.pidbox", "worker_1@host.celery.pidbox"),
        ("celeryev", "celeryev.1"),
    ):
        client.sadd(f"_kombu.binding.{exchange}", f"\x06\x16\x06\x16{bound}")  # ours
    assert [level for level, _ in found("broker")] == [Level.OK, Level.WARNING, Level.OK]
    client.config_set("maxmemory-policy", "noeviction")
    client.sadd("_kombu.binding.celery", "reports\x06\x16\x06\x16reports")
    (_, (level, said)) = found("broker")
    assert level is Level.WARNING
    assert "other Celery applications use this database of the broker (reports)" in said


def test_an_old_broker_is_told(production: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "OLDEST_BROKER", (99, 0))
    assert found("broker")[0][0] is Level.FAULT


def test_a_bucket_that_is_missing_or_closed_is_told(production: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_STORAGE_URL", "s3://no-such-bucket")
    ((level, said),) = found("storage")
    assert (level, "no such bucket" in said) == (Level.FAULT, True)
    monkeypatch.setenv("SAM3_STORAGE_URL", production.storage_url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    ((level, said),) = found("storage")
    assert (level, "refuses this server's credentials" in said) == (Level.FAULT, True)


def test_buckets_of_datasets_that_cannot_be_listed_are_told(
    production: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM3_DATASET_BUCKETS", "s3://sam3/teams,s3://no-such-bucket")
    (well, (level, said)) = found("dataset_buckets", Process.CPU_WORKER)
    assert well[0] is Level.OK
    assert (level, "s3://no-such-bucket cannot be listed" in said) == (Level.WARNING, True)


def test_secrets_stored_under_another_key_are_told(
    embedded: Settings, production: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(production, SystemClock(), FakeQueue())
    now = datetime.now(UTC)
    with database.write() as unit:
        unit.session.add(
            WebhookEndpoint(
                id=new_id("we"),
                url="https://example.org",
                format=MessageFormat.STANDARD,
                events=["job.succeeded"],
                enabled=True,
                secret=Vault(production).seal("whsec_x"),
                created_at=now,
                updated_at=now,
            )
        )
    database.close()
    assert found("secret_key") == [(Level.OK, "the secrets of 1 webhook endpoints can be read")]
    monkeypatch.setenv("SAM3_SECRET_KEY", Fernet.generate_key().decode())
    ((level, said),) = found("secret_key")
    assert level is Level.FAULT
    assert "add the key that they were stored under to SAM3_SECRET_KEY" in said


def test_a_clock_that_is_wrong_is_told(production: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(seconds=60)

    monkeypatch.setattr(neighbours, "datetime", Late)
    ((level, said),) = found("clock")
    assert level is Level.WARNING
    assert "differs from the database's by 60.0 s" in said or "59.9" in said or "60.1" in said


def test_connections_that_do_not_suffice_are_told(production: Settings) -> None:
    database = Database(production, SystemClock(), FakeQueue())
    with database.write() as unit:
        for number in range(5):
            unit.workers.beat(f"w-{number}", kind="gpu", host="h", pid=1, device="CPU")
    database.close()
    ((level, said),) = found("connections")
    assert level is Level.WARNING
    assert "open up to 140: set max_connections to 143" in said


def test_weights_that_are_none_are_told(embedded: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "sam3.pt"
    file.write_text("<html>you need access</html>")
    monkeypatch.setenv("SAM3_CHECKPOINT", str(file))
    ((level, said),) = found("weights")
    assert (level, "does not look like the weights of SAM3" in said) == (Level.FAULT, True)
    monkeypatch.delenv("SAM3_CHECKPOINT")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("SAM3_CHECKPOINT_FROM_HUB", "true")
    assert found("weights")[0][0] is Level.WARNING
    (tmp_path / "token").touch()
    assert found("weights")[0][0] is Level.OK


def test_what_the_machine_lacks_is_told(embedded: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAM3_MAX_UPLOAD_BYTES", str(2**60))
    monkeypatch.setenv("SAM3_MAX_CONNECTIONS", str(2**40))
    monkeypatch.setenv("SAM3_DATASET_ROOTS", f"{tmp_path}/none")
    monkeypatch.setattr(machine, "LEAST_SHARED_BYTES", 2**60)
    levels = {each.check: each.level for each in examine().findings}
    for check in ("space", "open_files", "dataset_roots", "shared_memory"):
        assert levels[check] is Level.WARNING, check
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 2**60)
    assert found("space")[0][0] is Level.FAULT


def test_a_taken_port_is_told(embedded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("SAM3_PORT", str(taken.getsockname()[1]))
        taken.settimeout(0.1)
        assert found("port")[0][0] is Level.FAULT
