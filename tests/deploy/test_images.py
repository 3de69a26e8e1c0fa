"""The Dockerfile, as far as it can be checked without building it."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.files import ROOT, images, tool

FINAL = ("service", "worker-cpu", "worker-gpu")


def test_the_linter_has_nothing_to_say() -> None:
    said = subprocess.run([tool("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("target", FINAL)
def test_an_image_runs_as_nobody_special_and_is_stopped_gently(target: str) -> None:
    image = images()[target]
    assert image.user == "10001:10001"
    assert image.entrypoint == ("tini", "--")
    assert image.stop_signal == "SIGTERM"
    assert image.health
    assert image.environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert image.environment["HOME"] == image.environment["SAM3_DATA_DIR"] == "/data"


def test_every_base_has_an_exact_version_and_every_installation_the_lock() -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = {line.split()[1] for line in text.splitlines() if line.startswith("FROM ")} - set(images())
    assert bases == {"python:3.11.14-slim-trixie"}
    joined = text.replace("\\\n", " ")
    installs = [part for line in joined.splitlines() if line.startswith("RUN") for part in line.split("&&")]
    installs = [part for part in installs if "pip install" in part]
    assert len(installs) == 7
    assert all("--constraint requirements.lock" in part or "--no-deps --force-reinstall" in part for part in installs)


def test_the_build_sees_what_it_copies_and_not_the_rest() -> None:
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {path for image in images().values() for path in image.copied}
    assert "*" in lines
    assert kept == copied
    assert all((ROOT / path).exists() for path in copied)
    for secret in (".env", "settings.env", ".git", "models", "tests"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in kept)


def test_the_probe_tells_a_process_that_goes_round_from_one_that_hangs(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"

    def ask() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service.shared.pulse", str(pulse)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    missing = ask()
    pulse.touch()
    fresh = ask()
    os.utime(pulse, (time.time() - 61,) * 2)
    old = ask()
    assert (missing.returncode, fresh.returncode, old.returncode) == (1, 0, 1)
    assert "is not there" in missing.stderr
    assert re.search(r"6\d seconds ago", old.stderr)
