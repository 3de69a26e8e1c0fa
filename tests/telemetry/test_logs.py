"""Log lines: JSON whatever happens, with the ids of what they are about, and without secrets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from sqlalchemy.exc import OperationalError

from service.shared import log as logs
from service.shared.errors import LeaseLostError, SettingsError
from service.shared.redaction import REDACTED, redactor, secrets_of
from service.shared.settings import Settings, load
from tests.servers import free_port
from tests.stack import wait_until
from worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATABASE, BROKER = "canary of the database/@", "canary-of-the-broker"
SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket", "HF_TOKEN": "hf_canaryofthehub"}


@contextlib.contextmanager
def json_logs() -> Iterator[None]:
    """Within a test: pytest gives the error stream of its own to each of its parts."""
    hooks, thread_hook = sys.excepthook, threading.excepthook
    logs.configure("INFO", "test", ['se"cret', "p@ss word"])
    logs.catch_rest()
    yield
    sys.excepthook, threading.excepthook = hooks, thread_hook
    logs.logging.captureWarnings(capture=False)
    logs.configure("ERROR", "test")


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


@json_logs()
def test_warnings_and_the_end_of_threads_are_lines_too(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        password = "of nobody's business"  # noqa: F841 - a local variable
        raise ValueError("it broke")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", UserWarning, stacklevel=1)
    broken, warned = lines(capfd)
    assert (broken["event"], broken["level"], broken["process"]) == ("uncaught_exception", "critical", "test")
    assert broken["exception"][0]["exc_value"] == "it broke"
    assert "nobody" not in json.dumps(broken)
    assert warned["logger"] == "py.warnings"
    assert "careful" in warned["event"]


@json_logs()
def test_secrets_are_replaced_however_they_are_written(capfd: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("x")
    key, signing = "sam3_" + "k" * 43, "whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0"
    log.info(
        "said", a='the se"cret', b=["p@ss word", "p%40ss%20word"], key=key, signing=f"{signing}==", kept="sam3_jobs"
    )
    logs.logging.getLogger("other").error("%s", key)
    text = capfd.readouterr().err
    said, other = map(json.loads, text.splitlines())
    assert said["a"] == f"the {REDACTED}"
    assert said["b"] == [REDACTED, REDACTED]
    assert (said["key"], said["signing"], said["kept"], other["event"]) == (REDACTED, REDACTED, "sam3_jobs", REDACTED)


def test_all_secrets_that_a_process_is_started_with_are_known(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        database_url="postgresql://u:a%2Fpass@h/d",
        broker_url="redis://:bpass@h/0",
        secret_key="MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    )
    environment = {
        "AWS_SECRET_ACCESS_KEY": "cpass", "HF_TOKEN": "dpass", "OTEL_EXPORTER_OTLP_HEADERS": "a=epass,b=f%20pass",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "c=gpass", "PATH": "/usr/bin", "AWS_ACCESS_KEY_ID": "AKIA",
    }  # fmt: skip
    found = secrets_of(settings, environment)
    assert found == {
        "a/pass", "a%2Fpass", "bpass", settings.secret_key, "cpass", "dpass", "epass", "f pass", "gpass"
    }  # fmt: skip
    in_query = {"database_url": "postgresql://h/d?user=u&password=q%2Fpass", "broker_url": "redis://h/0?password=rpass"}
    assert {"q/pass", "rpass"} <= secrets_of(settings.model_copy(update=in_query), {})
    assert redactor(["abc", ""])("abc") == "abc"  # too short to be told from other words


@json_logs()
def test_heartbeats_are_logged_under_the_ids_of_their_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=tmp_path, heartbeat_interval_s=0.02)
    failures = iter([OperationalError("UPDATE", {}, Exception("away")), LeaseLostError("gone")])

    def beat() -> None:
        raise next(failures)

    with structlog.contextvars.bound_contextvars(job_id="job_1", attempt=2):
        lease = Lease(beat, settings, claimed_at=time.monotonic(), name="job_1")
    with lease:
        wait_until(lambda: lease.is_lost)
    [line] = lines(capfd)
    assert (line["event"], line["job_id"], line["attempt"]) == ("heartbeat_failed", "job_1", 2)


def test_while_database_broker_and_bucket_refuse_every_line_is_json_and_no_secret_is_in_it(tmp_path: Path) -> None:
    port, refused = free_port(), free_port()
    password = "canary%20of%20the%20database%2F%40"
    environment = os.environ | SECRETS | {
        "AWS_ACCESS_KEY_ID": "me",
        "SAM3_DATA_DIR": str(tmp_path),
        "SAM3_PORT": str(port),
        "SAM3_DATABASE_URL": f"postgresql://sam3:{password}@127.0.0.1:{refused}/sam3",
        "SAM3_BROKER_URL": f"redis://:{BROKER}@127.0.0.1:{refused}/0",
        "SAM3_STORAGE_URL": "s3://bucket",
        "SAM3_STORAGE_ENDPOINT": f"http://127.0.0.1:{refused}",
        "SAM3_SECRET_KEY": "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LWNhbmE=",
        "SAM3_RECONCILE_INTERVAL_S": "0.2",
        "SAM3_POLL_INTERVAL_S": "0.2",
    }  # fmt: skip
    programs = {
        "api": ["service.cli", "api"],
        "reconciler": ["service.reconciler"],
        "gpu-worker": ["worker.app", "--queue", "gpu"],
        "cpu-worker": ["worker.app", "--queue", "cpu"],
    }
    processes = {}
    for name, program in programs.items():
        with (tmp_path / name).open("wb") as output:
            command = [sys.executable, "-m", *program]
            processes[name] = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: status(port, "/livez") == 200, 60)
        assert status(port, "/v1/jobs") == 503
        assert status(port, "/metrics") == 200
        wanted = {
            "api": "database_failed",
            "reconciler": "pass_failed",
            "gpu-worker": "presence_failed",
            "cpu-worker": "sending_failed",
        }
        for name, event in wanted.items():
            wait_until(lambda name=name, event=event: f'"{event}"' in (tmp_path / name).read_text(), 60)  # type: ignore[misc]
        wait_until(lambda: "Cannot connect to redis" in (tmp_path / "gpu-worker").read_text(), 60)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    for name in programs:
        text = (tmp_path / name).read_text()
        for line in text.splitlines():
            assert json.loads(line)["process"] == name, line
        for secret in (DATABASE, password, BROKER, environment["SAM3_SECRET_KEY"], *SECRETS.values(), "canary"):
            assert secret not in text, name


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://sam3:canary@more@127.0.0.1/sam3"),
        ("DATABASE_URL", "postgresql://sam3:canary/more@127.0.0.1/sam3"),
        ("BROKER_URL", "redis://:canary/more@127.0.0.1/0"),
        ("BROKER_URL", "redis://:canary#more@127.0.0.1/0"),
        ("BROKER_URL", "redis://:canary[more@127.0.0.1/0"),
    ],
)
def test_a_password_that_breaks_its_url_is_not_shown(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SAM3_{name}", url)
    with pytest.raises(SettingsError, match=f"SAM3_{name}: cannot be read as a URL") as caught:
        load()
    assert "canary" not in caught.value.message
