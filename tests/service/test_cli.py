from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from typer.testing import CliRunner, Result

from service.cli import app

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner(env=variables).invoke(app, list(arguments))


def test_wrong_settings_end_every_command_with_their_names(tmp_path: Path) -> None:
    for command in ("migrate", "api", "reconciler"):
        result = run(command, SAM3_DATA_DIR=str(tmp_path), SAM3_HOST="0.0.0.0")
        assert result.exit_code == 2
        assert "SAM3_ALLOW_UNAUTHENTICATED_NETWORK" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_process() -> None:
    text = run("--help").output
    assert all(command in text for command in ("migrate", "api", "reconciler", "serve"))


def test_a_name_of_a_key_commands_no_terminal(tmp_path: Path) -> None:
    variables = {"SAM3_DATA_DIR": str(tmp_path)}
    assert run("migrate", **variables).exit_code == 0
    assert run("keys", "create", "--scope", "admin", "--name", "ci\x1b[2J\nü\u202e", **variables).exit_code == 0
    (line,) = run("keys", "list", **variables).output.splitlines()
    assert line.endswith("ci\\x1b[2J\\nü\\u202e")


def test_the_api_serves_logs_json_and_stops_on_sigterm(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"SAM3_DATA_DIR": str(tmp_path), "SAM3_PORT": str(port)}
    assert run("migrate", **variables).exit_code == 0
    command = [sys.executable, "-m", "service.cli", "api"]
    log_path = tmp_path / "log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stderr=log, stdout=subprocess.DEVNULL
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", headers={"X-Request-Id": "probe-1"})
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert answer.json()["checks"]["database"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["request_id"], request["status"]) == ("probe-1", 200)
