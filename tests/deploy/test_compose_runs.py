"""What docker-compose.yml and the Dockerfile say is run, as plain processes: a job from upload to a model.

The commands, environments and health checks are read from the files. Names of other services become this host's
address, and the containers' folders become folders of the test; nothing else is changed. Training happens on a second
host where the system permits one: other network, no process and no file of the first.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest

from sam3_lora.synthetic.__main__ import main as draw
from tests.deploy.files import ROOT, compose, example, images
from tests.deploy.hosts import Hosts, two_hosts
from tests.servers import S3Server, postgres_host, redis_binary, s3_server
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = {
    "lora": {"rank": 4},
    "training": {"max_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "use_amp": False, "num_workers": 0},
}
TRAINER = "train-on-cpu"
PROCESSES = ("api", "reconciler", "cpu-worker", "predict-on-cpu", TRAINER)
NAMES = re.compile(r"\b(postgres|redis|storage)(?=:\d)")


@dataclass
class Deployment:
    folder: Path
    hosts: Hosts
    services: dict[str, Any]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.hosts.address}:8000"

    def data_dir(self, name: str) -> Path:
        return self.folder / ("there" if name == TRAINER else "here") / name

    def environment(self, name: str) -> dict[str, str]:
        """Of the container, and what the machine of the test needs: its Python, and one thread for torch."""
        service = self.services[name]
        values = images()[service["build"]["target"]].environment | service["environment"]
        moved = {key: self._moved(name, NAMES.sub(self.hosts.address, value)) for key, value in values.items()}
        moved["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return moved | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(self, name: str) -> list[str]:
        image = images()[self.services[name]["build"]["target"]]
        entrypoint = image.entrypoint if shutil.which(image.entrypoint[0]) else ()
        return [*entrypoint, *self.services[name].get("command", image.command)]

    def health(self, name: str) -> bool:
        image = images()[self.services[name]["build"]["target"]]
        test = self.services[name].get("healthcheck", {}).get("test", ["CMD", *image.health])
        assert test[0] == "CMD"
        command = [self._moved(name, part.replace("127.0.0.1", self.hosts.address)) for part in test[1:]]
        done = subprocess.run(command, env=self.environment(name), cwd="/", capture_output=True, check=False)
        return done.returncode == 0

    def run(self, name: str) -> None:
        """Until it ends by itself."""
        subprocess.run(self.command(name), env=self.environment(name), cwd="/", check=True, timeout=60)

    def start(self, name: str) -> None:
        self.data_dir(name).mkdir(parents=True)
        command = self.command(name)
        if name == TRAINER:
            command = self.hosts.elsewhere(self.data_dir(name), self.folder / "here", command)
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(command, env=self.environment(name), cwd="/", stdout=log, stderr=log)

    def main_process(self, name: str) -> psutil.Process:
        """What would be the container's first process."""
        process = psutil.Process(self.running[name].pid)
        while process.name() in ("unshare", "tini"):
            (process,) = process.children()
        return process

    def stop(self, name: str) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.main_process(name).send_signal(signal.SIGTERM)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _moved(self, name: str, value: str) -> str:
        if value == "0.0.0.0":
            return self.hosts.address  # or any service of this machine on that port would be in the way
        return re.sub(r"^/(data|tmp)(?=/|$)", str(self.data_dir(name)), value)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("compose")
    (folder / "here").mkdir()
    secrets = dict.fromkeys(example(ROOT / ".env.example"), "a-password")
    secrets |= dict(zip(("STORAGE_ACCESS_KEY", "STORAGE_SECRET_KEY"), S3Server.credentials.values(), strict=True))
    services = compose(secrets)["services"]
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(two_hosts())
        server = stack.enter_context(postgres_host(hosts.address))
        _make_database(server, services["postgres"]["environment"])
        (folder / "here" / "s3").mkdir()
        stack.enter_context(s3_server(folder / "here" / "s3", port=7070, host=hosts.address))
        _start_redis(stack, services["redis"]["command"], hosts.address, folder)
        found = Deployment(folder, hosts, services)
        stack.callback(_end, found)
        found.run("migrate")
        for name in PROCESSES:
            found.start(name)
        yield found


def _make_database(server: str, wanted: dict[str, str]) -> None:
    """As the image does at its first start."""
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        role, password = wanted["POSTGRES_USER"], wanted["POSTGRES_PASSWORD"]
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'".encode())
        connection.execute(f"CREATE DATABASE {wanted['POSTGRES_DB']} OWNER {role}".encode())


def _start_redis(stack: contextlib.ExitStack, command: list[str], address: str, folder: Path) -> None:
    assert command[0] == "valkey-server"
    arguments = [redis_binary(), *command[1:], "--bind", address, "--dir", folder / "here"]
    log = stack.enter_context((folder / "redis.log").open("wb"))
    process = subprocess.Popen(list(map(str, arguments)), stdout=log)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)


def _end(deployment: Deployment) -> None:
    for name in deployment.running:
        deployment.stop(name)
    for name, process in deployment.running.items():
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{name} did not end: {deployment.log(name).read_text()}")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "shapes.zip"
    draw([str(path), "--train", "4", "--valid", "1", "--concepts", "heart", "cross"])
    return path


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Iterator[httpx.Client]:
    wait_until(lambda: deployment.health("api"), 60)
    # As docs/operations.md says: within the container of the API.
    command = ["sam3-service", "keys", "create", "--name", "me", "--project", "first"]
    made = subprocess.run(
        command, env=deployment.environment("api"), cwd="/", check=True, capture_output=True, text=True, timeout=60
    )
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    with httpx.Client(base_url=f"{deployment.url}/v1", headers=headers, timeout=60) as client:
        assert httpx.get(f"{deployment.url}/v1/jobs").status_code == 401
        yield client


def test_every_container_becomes_healthy(deployment: Deployment, client: httpx.Client) -> None:
    for name in PROCESSES:
        wait_until(lambda name=name: deployment.health(name), 60)
    wait_until(lambda: httpx.get(f"{deployment.url}/readyz").json()["status"] == "ok", 60)


def test_a_job_goes_from_upload_to_a_model(client: httpx.Client, deployment: Deployment, archive: Path) -> None:
    with archive.open("rb") as file:
        dataset = client.post("/datasets", data={"name": "shapes"}, files={"file": file}).raise_for_status().json()
    body = {"name": "first", "base_model": "sam3-tiny", "dataset_id": dataset["id"], "config": QUICK}
    job = client.post("/jobs", json=body).raise_for_status().json()
    deadline = time.monotonic() + 200
    while not job["is_terminal"]:
        assert time.monotonic() < deadline, (job["status"], deployment.log(TRAINER).read_text())
        time.sleep(0.5)
        job = client.get(f"/jobs/{job['id']}").raise_for_status().json()
    assert job["status"] == "succeeded", (job["error"], client.get(f"/jobs/{job['id']}/logs").text)
    adapter = client.get(f"/models/{job['result']['model_id']}/export").raise_for_status().content
    assert "adapter_config.json" in zipfile.ZipFile(io.BytesIO(adapter)).namelist()


@pytest.mark.slow
def test_the_model_predicts(client: httpx.Client, archive: Path) -> None:
    (model,) = client.get("/models").raise_for_status().json()["data"]
    image = zipfile.ZipFile(archive).read("valid/scene_0001.jpg")
    form = {"file": image, "prompt": (None, "heart"), "min_score": (None, "0")}
    answer = client.post(f"/models/{model['id']}/predict", files=form)
    assert answer.raise_for_status().json()["results"][0]["detections"]


def test_training_happened_on_another_host(deployment: Deployment, client: httpx.Client) -> None:
    if deployment.hosts.namespace is None:
        pytest.skip("network and process namespaces are not permitted here")
    (job,) = client.get("/jobs").json()["data"]
    assert job["status"] == "succeeded"
    here, there = Path("/proc/self"), Path(f"/proc/{deployment.main_process(TRAINER).pid}")
    for kind in ("net", "pid", "mnt"):
        assert (here / "ns" / kind).readlink() != (there / "ns" / kind).readlink()
    status = dict(line.split(":\t", 1) for line in (there / "status").read_text().splitlines())
    assert status["NSpid"].split()[1] == "1"  # as in a container without an init
    assert (status["CapEff"], status["NoNewPrivs"]) == ("0" * 16, "1")
    assert list((there / f"root{deployment.folder}/here").iterdir()) == []  # no file of the API, nor of the bucket
    assert list((deployment.folder / "here" / "s3" / "blobs").iterdir()) != []
    assert {path.name for path in (deployment.data_dir(TRAINER) / "workspace").iterdir()} != set()


def test_a_stopped_worker_leaves_the_list(deployment: Deployment, client: httpx.Client) -> None:
    deployment.stop("cpu-worker")
    assert deployment.running["cpu-worker"].wait(30) == 0
    answer = httpx.get(f"{deployment.url}/readyz")
    assert (answer.status_code, answer.json()["checks"]["cpu_workers"]) == (200, "degraded")
