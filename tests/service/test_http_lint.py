"""Caching, conditions and ranges as redbot, a linter for HTTP, sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.service.conftest import Api, add_dataset, add_job, served
from tests.service.results import add_comparison, add_model, finish_comparison

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from redbot.cli import main; sys.exit(main())", "--output-format", "har"]
FINE = {"GOOD", "INFO"}
# The files of these tests are as short as the range that is asked for.
WHOLE_FILE = "The partial response has a Content-Length equal to the full response."
WRONG_PART = "A ranged request returned partial content, but it was incorrect."
TRIES = 5


def notes(url: str) -> dict[str, str]:
    """What the linter says about an address: each summary with its level.

    It asks for a part that begins at any of the pieces in which the whole came, and expects a byte too few where that
    piece was shorter than 97 bytes: then it is asked again.
    """
    for _ in range(TRIES):
        said = _notes(url)
        if WRONG_PART not in said:
            break
    return said


def _notes(url: str) -> dict[str, str]:
    done = subprocess.run([*COMMAND, url], capture_output=True, text=True, timeout=60, check=True)
    first: dict[str, Any] = json.loads(done.stdout)["log"]["entries"][0]
    return {note["summary"]: note["level"] for note in first["_red_messages"]}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An application whose clock no other test has moved beyond today."""
    settings = Settings(data_dir=tmp_path / "data")
    upgrade(settings)
    with served(settings) as fresh:
        yield fresh


def test_a_linter_finds_nothing_to_say_against_what_is_read(api: Api, tmp_path: Path) -> None:
    model = add_model(api.database, api.storage, tmp_path)
    job = api.client.get(f"/v1/models/{model}").json()["job_id"]
    checkpoint = api.client.get(f"/v1/jobs/{job}/checkpoints").json()["data"][0]
    add_comparison(api.database, api.settings, ("sam3-tiny", model))
    comparison = finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))
    files = [
        f"/v1/checkpoints/{checkpoint['id']}/files/{checkpoint['files'][0]['name']}",
        f"/v1/checkpoints/{checkpoint['id']}/archive",
        f"/v1/models/{model}/export",
        f"/v1/comparisons/{comparison}/report",
        f"/v1/files/{model}/content",
        f"/v1/files/metrics_{job}/content",
    ]
    jobs = [f"/v1/jobs/{job}", f"/v1/jobs/{add_job(api.database, add_dataset(api.database))}"]
    others = [f"/v1/jobs/{job}/logs", f"/v1/jobs/{job}/metrics", "/v1/jobs", "/v1/datasets", "/openapi.json"]
    paths = [*files, *jobs, *others]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(paths, pool.map(lambda path: notes(f"{api.client.base_url}{path}"), paths), strict=True))
    for path, said in found.items():
        assert {summary: level for summary, level in said.items() if level not in FINE} in ({}, {WHOLE_FILE: "WARN"}), (
            path
        )
        assert not [summary for summary in said if "own freshness lifetimes" in summary], path
    for path in files:
        assert "A ranged request returned the correct partial content." in found[path], path
    for path in (*files, *jobs):
        assert "If-None-Match conditional requests are supported." in found[path], path
