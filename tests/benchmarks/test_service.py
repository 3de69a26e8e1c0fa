"""The benchmarks of the service run at a small size and end with their ratios. Their figures are not judged here."""

import json
from pathlib import Path

from tests.benchmarks.test_learning import run


def test_every_follower_is_counted_against_a_real_server(tmp_path: Path):
    done = run("sse", "--quick", "--jobs", 2, "--interval", 0.05, "--output", tmp_path / "sse.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "sse ratio=1.0000 target=1.00"
    (row,) = json.loads((tmp_path / "sse.json").read_text())["rows"]
    assert (row["followers"], row["ended"], row["received"]) == (20, 20, 20 * (2 + 5 + 1))
    assert 0 <= row["latency_p50_s"] <= row["latency_p99_s"]
    assert row["server_rss_mb"] > 0


def test_points_are_stored_on_both_databases(tmp_path: Path):
    done = run("ingest", "--without-peer", "--steps", 30, "--output", tmp_path / "ingest.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "ingest.json").read_text())["rows"]
    assert [row["store"] for row in rows] == ["sqlite", "postgresql"]
    assert all(rate > 0 for row in rows for rate in row["points_per_second"])


def test_requests_are_counted_on_both_databases_beside_the_bare_handler(tmp_path: Path):
    done = run("api", "--without-peer", "--seconds", 0.5, "--output", tmp_path / "api.json")
    assert done.returncode == 0, done.stderr
    assert "api-sqlite-get-bare ratio=" in done.stdout
    rows = json.loads((tmp_path / "api.json").read_text())["rows"]
    operations = ["get", "get, not modified", "create", "create with a key", "bare handler"]
    measured = [(row["server"], row["operation"]) for row in rows]
    assert measured == [(server, operation) for server in ("sqlite", "postgresql") for operation in operations]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_projects_share_a_backlog_equally_on_both_databases(tmp_path: Path):
    few = ("--few", 150, "--many", 300, "--claims", 120)
    done = run("backlog", *few, "--output", tmp_path / "backlog.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "backlog-apart ratio=1.00 target=1.00 (at most)"
    rows = json.loads((tmp_path / "backlog.json").read_text())["rows"]
    assert [(row["database"], row["queued"]) for row in rows] == [
        (database, count) for database in ("sqlite", "postgresql") for count in (150, 300)
    ]
