"""Every example of the README runs as written, against a service that is really running."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sam3_lora.config import load
from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e import guides
from tests.e2e.guides import ADDRESS, ROOT
from tests.stack import Service

README = ROOT / "README.md"


def example(kind: str) -> str:
    return guides.example("README.md", kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2"])
    (tmp_path / "photo.jpg").write_bytes(zipfile.ZipFile(tmp_path / "shapes.zip").read("valid/scene_0001.jpg"))
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
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 0


def test_yaml_example(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(example("yaml"))
    assert load(tmp_path / "run.yaml").training.learning_rate == 1e-4


def test_every_make_target_that_the_readme_names_exists():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"[`$] ?make ([a-z-]+)", README.read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_of_training_without_the_service(tmp_path: Path):
    """Every line, in order, with the small base and few drawn images in place of the user's own."""
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2"])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as archive:
        archive.extractall(tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "valid", tmp_path / "test")
    (tmp_path / "test" / "_annotations.coco.json").rename(tmp_path / "test" / "coco.json")
    shutil.copy(next((tmp_path / "test").glob("*.jpg")), tmp_path / "photo.jpg")
    small = example("yaml").replace("{base: sam3} ", "{base: sam3-tiny}").replace(", resolution: 1008", "")
    (tmp_path / "run.yaml").write_text(small.replace("max_epochs: 20", "max_epochs: 1"))
    (tmp_path / "train.py").symlink_to(README.parent / "train.py")
    for line in example("commands").splitlines():
        command = line.removeprefix("$ ").partition("  #")[0].replace(".venv/bin", str(Path(sys.executable).parent))
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for written in ("found.png", "merged.pt", "adapter/README.md", "runs/first/report.html"):
        assert (tmp_path / written).stat().st_size > 0
