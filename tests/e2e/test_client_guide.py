"""The guide to client and commands runs as it is written, against a service that is really running."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e import guides
from tests.e2e.guides import ADDRESS, example
from tests.stack import Service

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.timeout(900)
RUN = """
model: {base: sam3-tiny}
training: {max_epochs: 1, learning_rate: 3e-3, use_amp: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    draw([str(folder / "shapes.zip"), "--train", "4", "--valid", "2", "--concepts", "heart", "cross"])
    with zipfile.ZipFile(folder / "shapes.zip") as archive:
        archive.extractall(folder / "shapes")
    (folder / "photo.jpg").write_bytes((folder / "shapes" / "valid" / "scene_0001.jpg").read_bytes())
    (folder / "run.yaml").write_text(RUN)
    return folder


def test_the_program(service: Service, folder: Path) -> None:
    script = example("docs/client.md", "python").replace(ADDRESS, service.url)
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("heart ")
    for written in ("adapter/adapter_model.safetensors", "found.png", "for-transformers.zip"):
        assert (folder / written).stat().st_size > 0


def test_the_commands(service: Service, folder: Path) -> None:
    ids: dict[str, str] = {}
    for line in example("docs/client.md", "commands").splitlines():
        command = line.removeprefix("$ ").partition("  #")[0]
        done = guides.run(command, folder, service.url, **ids)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if "submit" in command:
            ids["job"] = done.stdout.split()[1]
            job = service.get(f"/v1/jobs/{ids['job']}")
            assert job["status"] == "succeeded"
            ids["model"] = job["result"]["model_id"]
        if "--json" in shlex.split(command):
            assert json.loads(done.stdout)["id"] == ids["job"]
    assert (folder / "merged.safetensors").stat().st_size > 1_000_000
