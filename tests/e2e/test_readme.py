"""Every example of the README runs as written, against a service that is really running."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam3_lora.config import load
from sam3_lora.synthetic.__main__ import main as draw
from tests.stack import Service, started

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def example(kind: str) -> str:
    (found,) = re.findall(rf"<!-- test: {kind} -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("readme")
    with started(folder, folder / "data") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2"])
    return tmp_path


def test_shell_example(service: Service, folder: Path):
    script = "set -euo pipefail\n" + example("shell").replace(ADDRESS, service.url)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    job = json.loads((folder / "job.json").read_text())
    assert job["object"] == "job"
    service_job = service.get(f"/v1/jobs/{job['id']}")
    assert service_job["config"]["lora"]["rank"] == 16


def test_python_example(service: Service, folder: Path):
    script = example("python").replace(ADDRESS, service.url)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("succeeded")
    assert (folder / "adapter_model.safetensors").stat().st_size > 0


def test_yaml_example(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(example("yaml"))
    assert load(tmp_path / "run.yaml").training.learning_rate == 1e-4


def test_every_make_target_that_the_readme_names_exists():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"[`$] ?make ([a-z-]+)", README.read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
