"""docker-compose.yml: valid, closed, and filled with settings that the service takes."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from cryptography.fernet import Fernet

from service.shared.settings import Settings, load
from tests.deploy.files import ROOT, compose, example, images, tool, variables

FILLED = {name: f"filled-{name.lower()}" for name in example(ROOT / ".env.example")}
SERVICES: dict[str, dict[str, Any]] = compose(FILLED)["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SECONDS = re.compile(r"(\d+)s")


def test_it_is_a_compose_file() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_the_example_names_every_variable_and_holds_no_secret() -> None:
    wanted = variables((ROOT / "docker-compose.yml").read_text())
    text = (ROOT / ".env.example").read_text()
    assert example(ROOT / ".env.example") == {name: "" for name, must in wanted.items() if must}
    assert set(re.findall(r"^#(\w+)=", text, re.MULTILINE)) == {name for name, must in wanted.items() if not must}
    with pytest.raises(KeyError):
        compose({})


@pytest.mark.parametrize("name", OURS)
def test_each_process_takes_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = images()[OURS[name]["build"]["target"]].environment | OURS[name]["environment"]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = load()
    assert settings.database_url.startswith("postgresql://sam3:filled-postgres_password@postgres:")
    assert settings.storage_dir is None
    assert settings.pulse_file is not None


def test_the_key_of_webhooks_reaches_who_seals_and_who_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Fernet.generate_key().decode()
    filled = compose(FILLED | {"WEBHOOK_KEY": key})["services"]
    for name in ("api", "cpu-worker"):
        for variable, value in (
            images()[filled[name]["build"]["target"]].environment | filled[name]["environment"]
        ).items():
            monkeypatch.setenv(variable, value)
        assert load().secret_key == key


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    user = service.get("user") or images()[service["build"]["target"]].user
    assert (user in ("0:0", "root")) == (name == "bucket")  # which prepares the volume and ends
    assert not service.get("privileged")
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), "an exact version"


def test_only_the_api_is_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert compose(FILLED)["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis", "storage"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_a_worker_has_time_to_save_and_to_store() -> None:
    settings = Settings()
    for name, service in OURS.items():
        if "worker.app" in service.get("command", []):
            grace = SECONDS.fullmatch(service["stop_grace_period"])
            assert grace is not None, name
            assert int(grace[1]) >= 2 * (settings.terminate_grace_s + settings.kill_grace_s)


def test_every_queue_is_served_in_either_profile() -> None:
    for profile in ("cpu", "gpu"):
        active = [each for each in SERVICES.values() if profile in each.get("profiles", [profile])]
        commands = [each["command"] for each in active if "worker.app" in each.get("command", [])]
        assert sorted(command[-1] for command in commands) == ["cpu", "gpu", "predict"]
    unconditional = {name for name, each in SERVICES.items() if "profiles" not in each}
    for each in SERVICES.values():
        assert set(each.get("depends_on", {})) <= unconditional


def test_gpus_are_asked_for_by_those_who_use_them() -> None:
    for name, service in SERVICES.items():
        devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        on_gpu = service.get("build", {}).get("target") == "worker-gpu"
        assert bool(devices) == on_gpu, name
        assert ("CUDA_VISIBLE_DEVICES" in service.get("environment", {})) == on_gpu
