"""Without extras there is the client, with `[service]` the API and the reconciler; what needs more says so."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from sam3_lora.synthetic.__main__ import main as draw
from tests.deploy import lean
from tests.servers import free_port
from tests.stack import wait_until

ROOT = Path(__file__).parents[2]
SERVICE = {"fastapi", "sqlalchemy", "celery", "redis", "psycopg", "psycopg-binary", "obstore"}
HEAVY = {"torch", "torchvision", "sam3", "numpy", "scipy", "triton", "matplotlib", "transformers", "pysqlite3"}


def run(
    module: str, *arguments: str, extras: str = "-", typed: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.deploy.lean", extras, module, *arguments]
    values = os.environ | environment
    return subprocess.run(
        command, cwd=ROOT, env=values, input=typed, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_smallest_installation_has_nothing_heavy() -> None:
    smallest, service = lean.closure(set()), lean.closure({"service"})
    assert smallest >= {"httpx", "pydantic", "typer"}
    assert smallest & SERVICE == set()
    assert len(smallest) <= 30
    assert service >= SERVICE
    assert (smallest | service) & HEAVY == set()
    assert {name for name in service if name.startswith("nvidia-")} == {"nvidia-ml-py"}
    assert lean.closure({"train", "embedded"}) >= HEAVY - {"transformers"}


def test_the_api_answers_without_pytorch(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    port = free_port()
    settings = {
        "SAM3_DATA_DIR": str(tmp_path / "data"),
        "SAM3_DATABASE_URL": postgres_url,
        "SAM3_BROKER_URL": redis_url,
        "SAM3_PORT": str(port),
    }
    migrated = run("service.entry", "migrate", extras="service", **settings)
    assert migrated.returncode == 0, migrated.stderr
    archive = tmp_path / "shapes.zip"
    draw([str(archive), "--train", "2", "--valid", "1", "--concepts", "heart"])
    command = [sys.executable, "-m", "tests.deploy.lean", "service", "service.entry", "api"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(url + "/readyz"))
        with httpx.Client(base_url=f"{url}/v1", timeout=30) as client, archive.open("rb") as file:
            assert client.get("/recipes/sam3-tiny").raise_for_status().json()["base_model"] == "sam3-tiny"
            stored = client.post("/datasets", data={"name": "shapes"}, files={"file": file}).raise_for_status().json()
            assert (
                client.get(f"/datasets/{stored['id']}").json()["sha256"]
                == hashlib.sha256(archive.read_bytes()).hexdigest()
            )
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_a_worker_without_pytorch_does_not_start() -> None:
    ended = run("worker.app", "--queue", "cpu", extras="service")
    assert ended.returncode == 2
    assert "pip install 'sam3-lora-service[service,train]'" in ended.stderr


def test_the_service_without_its_part_says_what_to_install() -> None:
    ended = run("service.entry", "--help")
    assert ended.returncode == 1
    assert "pip install 'sam3-lora-service[service]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_client_needs_neither_service_nor_pytorch() -> None:
    program = "from sam3_lora.client import Client; Client('http://127.0.0.1:9', retry_for_s=0).queue()"
    ended = run("code", "-q", typed=program)
    assert "ConnectionFailedError: http://127.0.0.1:9 does not answer" in ended.stderr


def test_the_command_line_without_pytorch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    ended = run("sam3_lora.cli", "merge", "--adapter", str(tmp_path), "--output", str(tmp_path / "merged.pt"))
    assert ended.returncode == 1
    assert "pip install 'sam3-lora-service[train]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["sam3_lora.cli", "service.cli"])
def test_programs_tell_their_version(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout == f"sam3-lora-service {stated}\n"


def test_the_lock_pins_what_every_installation_brings() -> None:
    pinned = {lean.canonical(line.partition("==")[0]) for line in (ROOT / "requirements.lock").read_text().split()}
    unpinned = {"setuptools", "sam3-lora-service"}  # pip freeze leaves them out
    assert lean.closure({"service", "train", "embedded", "dev"}) - pinned <= unpinned


@pytest.mark.slow
def test_a_wheel_alone_in_a_fresh_environment_has_all_its_files(tmp_path: Path) -> None:
    """Installs from the package index."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    copied = tmp_path / "source"
    copied.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    for name in ("sam3_lora", "service", "worker", "migrations"):
        shutil.copytree(ROOT / name, copied / name)
    subprocess.run([*pip, *build], cwd=copied, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"migrations/env.py", "sam3_lora/model/bases/sam3-tiny/model.safetensors"} <= names
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    target = ["--python", str(python), "install", "--constraint", str(ROOT / "requirements.lock")]
    subprocess.run([*pip, *target, str(wheel)], check=True, capture_output=True)
    told = subprocess.run([python, "-c", "from sam3_lora.client import Client; Client(retry_for_s=0).queue()"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert "ConnectionFailedError" in told.stderr
    subprocess.run([*pip, *target, f"{wheel}[service]"], check=True, capture_output=True)
    said = subprocess.run(
        [python, "-m", "service.entry", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "migrate" in said.stdout
    loaded = subprocess.run([python, "-c", "import torch"], cwd=tmp_path, capture_output=True, check=False)
    assert loaded.returncode == 1
