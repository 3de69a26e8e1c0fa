"""docs/operations.md names things that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.shared.settings import Settings
from tests.deploy.files import KUBERNETES, ROOT, compose, example, images, rendered, variables

TEXT = (ROOT / "docs" / "operations.md").read_text()
CODE = "\n".join(re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_passwords_are_made_as_it_says(tmp_path: Path) -> None:
    loop = re.search(r"^\$ (for name in POSTGRES.*?> \.env)$", CODE, re.MULTILINE | re.DOTALL)
    assert loop is not None
    script = re.sub(r"^> ", "", loop[1], flags=re.MULTILINE)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    made = example(tmp_path / ".env")
    assert set(made) == {name for name, must in variables((ROOT / "docker-compose.yml").read_text()).items() if must}
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in made.values())
    assert compose(made)["services"]
    (key,) = re.findall(r"^\$ (echo \"WEBHOOK_KEY=.*>> \.env)$", CODE, re.MULTILINE)
    subprocess.run(["bash", "-euc", key], cwd=tmp_path, check=True)
    assert Settings(secret_key=example(tmp_path / ".env")["WEBHOOK_KEY"]).secret_key


def test_targets_profiles_files_and_objects_exist() -> None:
    services = compose(dict.fromkeys(example(ROOT / ".env.example"), "x"))["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    assert set(re.findall(r"--profile\s+(\w+)", TEXT)) == profiles
    assert set(re.findall(r"--target (\S+)", CODE)) == {"service", "worker-cpu", "worker-gpu"} <= set(images())
    assert all(
        (ROOT / path).exists() for path in re.findall(r"deploy/kubernetes/\S+", CODE) if "secret.env" not in path
    )
    for name in re.findall(r"`((?:base|overlays|examples)/[^`]+|[\w-]+\.yaml|secret\.env\.example)`", TEXT):
        if name not in ("kustomization.yaml",):
            assert (KUBERNETES / name).exists() or (KUBERNETES / "base" / name).exists(), name
    objects = {(each["kind"].lower(), each["metadata"]["name"]) for each in rendered("gpu")}
    for kind, name in re.findall(r"\b(job|deployment)/([\w-]+)", CODE):
        assert (kind, name) in objects
    assert re.findall(r"compose run --rm (\S+)", CODE) == ["migrate"]
    assert "migrate" in services


def test_secrets_are_those_that_the_manifests_read() -> None:
    made = set(re.findall(r"create secret generic (\w+)", CODE))
    text = yaml.safe_dump_all(rendered("gpu"))
    assert made == set(re.findall(r"secretRef:\n\s+name: (\w+)", text)) | set(
        re.findall(r"key: connection\n\s+name: (\w+)", text)
    )


def test_settings_and_variables_exist() -> None:
    known = {f"SAM3_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"SAM3_[A-Z_]*[A-Z]", TEXT)) <= known
    assert set(re.findall(r"`(\w+_s)`", TEXT)) <= set(Settings.model_fields)
