from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam3_lora.client._sync.client import KEY_VARIABLE, URL_VARIABLE
from service.shared.errors import SettingsError
from service.shared.settings import Settings, is_loopback, load


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in os.environ:
        if name.startswith("SAM3_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_everything_lies_in_the_data_folder_by_default(tmp_path: Path) -> None:
    settings = load()
    assert settings.data_dir == tmp_path / "sam3-data"
    assert settings.database_url == f"sqlite:///{tmp_path}/sam3-data/service.db"
    assert settings.broker_url == f"redis+socket://{tmp_path}/sam3-data/broker.sock"
    assert settings.storage_dir == tmp_path / "sam3-data" / "storage"
    assert settings.base_models == ("sam3-tiny",)


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_PORT", "9000")
    monkeypatch.setenv("SAM3_DATABASE_URL", "postgres://u:p@h/d")
    assert load().port == 9000
    assert load().database_url == "postgresql://u:p@h/d"
    assert load(port=1).port == 1


def test_counts_of_gpus_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().worker_gpus == ()
    monkeypatch.setenv("SAM3_WORKER_GPUS", "1, 1,2")
    assert load().worker_gpus == (1, 1, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"self_fence_s": 25}, "two trainers"),
        ({"lease_timeout_s": 25}, "two trainers"),
        ({"heartbeat_interval_s": 11}, "half of self_fence_s"),
        (
            {"pulse_file": "/p", "lease_timeout_s": 200, "self_fence_s": 90, "heartbeat_interval_s": 31},
            "at most 30 with a pulse_file",
        ),
        ({"host": "0.0.0.0"}, "ALLOW_UNAUTHENTICATED_NETWORK"),
        ({"host": "example.org"}, "ALLOW_UNAUTHENTICATED_NETWORK"),
        ({"host": "::"}, "ALLOW_UNAUTHENTICATED_NETWORK"),
        ({"storage_url": "file://host/x"}, "file:///absolute/folder or s3://bucket"),
        ({"storage_url": "gs://bucket"}, "file:///absolute/folder or s3://bucket"),
        ({"storage_url": "s3://key:secret@bucket/x"}, "file:///absolute/folder or s3://bucket"),
        ({"storage_url": "s3://bucket", "storage_endpoint": "minio:9000"}, "http://host:port"),
        ({"storage_url": "s3://bucket", "storage_endpoint": "http://k:s@minio"}, "credentials belong into AWS_*"),
        ({"storage_endpoint": "http://minio:9000"}, "begins with s3://"),
        ({"dataset_buckets": "bucket"}, "s3://bucket or s3://bucket/folder"),
        ({"dataset_buckets": "s3://ok,s3://"}, "s3://bucket or s3://bucket/folder"),
        ({"dataset_buckets": "s3://key:secret@bucket/x"}, "s3://bucket or s3://bucket/folder"),
        ({"dataset_roots": "data"}, "absolute path without"),
        ({"dataset_roots": "/data/../etc"}, "absolute path without"),
        ({"dataset_retention_s": 0}, "SAM3_DATASET_RETENTION_S"),
        ({"worker_gpus": "1,0"}, "SAM3_WORKER_GPUS"),
        ({"worker_gpus": "17"}, "SAM3_WORKER_GPUS"),
        ({"worker_gpus": "two"}, "SAM3_WORKER_GPUS"),
        ({"database_url": "mysql://x"}, "sqlite:/// or postgresql://"),
        ({"database_url": "sqlite://"}, "absolute file"),
        ({"database_url": "sqlite:///relative.db"}, "absolute file"),
        ({"broker_url": "memory://"}, "redis://"),
        ({"checkpoint": "/nope/sam3.pt"}, "not a file"),
        ({"lease_timeout_s": float("inf")}, "SAM3_LEASE_TIMEOUT_S"),
        ({"poll_interval_s": 0}, "SAM3_POLL_INTERVAL_S"),
        ({"port": 70000}, "SAM3_PORT"),
        ({"prot": 1}, "SAM3_PROT"),
    ],
)
def test_wrong_and_unsafe_settings_do_not_start(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**values)
    assert message in caught.value.message


def test_lists_are_read_as_operators_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_DATASET_URI_HOSTS", "Data.example.org, other.example.org:8443,")
    monkeypatch.setenv("SAM3_DATASET_ROOTS", "/data/a,b:/mnt/x:")
    settings = load()
    assert settings.dataset_uri_hosts == ("data.example.org", "other.example.org:8443")
    assert settings.dataset_roots == (Path("/data/a,b"), Path("/mnt/x"))
    assert (load(dataset_roots="").dataset_roots, load(dataset_uri_hosts="").dataset_uri_hosts) == ((), ())


def test_a_bucket_has_no_folder() -> None:
    settings = load(storage_url="s3://bucket/some/prefix", storage_endpoint="http://minio:9000/")
    assert (settings.storage_dir, settings.storage_endpoint) == (None, "http://minio:9000")


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_DATADIR", "/x")
    with pytest.raises(SettingsError, match=r"SAM3_DATADIR.*did you mean SAM3_DATA_DIR"):
        load()


def test_what_the_client_reads_is_no_fault_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL_VARIABLE, KEY_VARIABLE):
        monkeypatch.setenv(name, "x")
    assert load() == Settings()


def test_the_network_can_be_allowed_on_purpose() -> None:
    assert load(host="0.0.0.0", allow_unauthenticated_network=True).host == "0.0.0.0"
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "")] == [True] * 3 + [False] * 2


def test_secrets_are_not_shown() -> None:
    settings = load(database_url="postgresql://u:canary@h/d", broker_url="redis://:canary@h")
    assert "canary" not in repr(settings)


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_wrong_value_and_every_wrong_combination_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"PORT": "x", "LOG_LEVEL": "LOUD", "SELF_FENCE_S": "40", "HOST": "0.0.0.0", "CHECKPOINT": "/no/file"}
    for name, value in values.items():
        monkeypatch.setenv(f"SAM3_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load()
    lines = caught.value.message.splitlines()
    assert len(lines) == 5
    for said in ("SAM3_PORT: ", "SAM3_LOG_LEVEL: ", "two trainers", "SAM3_REQUIRE_KEYS=true", "/no/file is not a file"):
        assert any(said in line for line in lines), said


def test_a_combination_with_a_wrong_value_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_LEASE_TIMEOUT_S", "-1")
    monkeypatch.setenv("SAM3_SELF_FENCE_S", "40")
    with pytest.raises(SettingsError) as caught:
        load()
    assert [line.partition(":")[0] for line in caught.value.message.splitlines()] == ["SAM3_LEASE_TIMEOUT_S"]
