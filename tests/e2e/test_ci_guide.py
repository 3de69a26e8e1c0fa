"""A build that trains: exit codes of the command and of the script, and a build that is started again."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e import guides
from tests.e2e.guides import ROOT, example
from tests.servers import free_port
from tests.stack import Service

GUIDE = "docs/continuous-integration.md"
RUN = "training: {max_epochs: 1, learning_rate: 1e-3, use_amp: false}\n"
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2", "--concepts", "heart"])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as archive:
        archive.extractall(tmp_path / "data")
    (tmp_path / "run.yaml").write_text("model: {base: sam3-tiny}\n" + RUN)
    (tmp_path / "sections.yaml").write_text(RUN)
    shutil.copy(ROOT / "examples" / "train_in_ci.py", tmp_path)
    return tmp_path


@pytest.fixture
def run(service: Service, folder: Path) -> Run:
    return lambda command, **variables: guides.run(command, folder, service.url, **variables)


def line(kind: str) -> str:
    return example(GUIDE, kind).strip().removeprefix("$ ")


def test_the_command(run: Run, folder: Path, service: Service) -> None:
    done = run(line("command"), BUILD_ID="1")
    assert done.returncode == 0, done.stderr
    job = json.loads((folder / "job.json").read_text())
    assert (job["status"], job["name"], job["tags"]) == ("succeeded", "build 1", ["ci"])


def test_the_script_with_all_its_ends(run: Run, folder: Path, service: Service) -> None:
    script = line("script").replace("run.yaml", "sections.yaml") + " --base-model sam3-tiny"
    passed = run(script.replace("0.6", "0"), BUILD_ID="7")
    assert passed.returncode == 0, passed.stderr
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    summary = json.loads((folder / "training.json").read_text())
    again = run(script.replace("0.6", "1.5"), BUILD_ID="7")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, "not good enough: 1.5 is asked for")
    assert json.loads((folder / "training.json").read_text()) == summary, "a second job was made"

    (folder / "sections.yaml").write_text("training: {max_epoch: 1}\n")
    wrong = run(script, BUILD_ID="8")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr
    assert "max_epochs" in wrong.stderr

    shutil.rmtree(folder / "data" / "train")
    empty = run(script, BUILD_ID="9")
    assert empty.returncode == 2
    assert empty.stderr.startswith("the dataset cannot be used: ")


def test_a_job_that_fails_fails_the_build(run: Run, folder: Path, service: Service) -> None:
    (folder / "sections.yaml").write_text("dataset: {resolution: 100}\n")
    done = run(line("script").replace("run.yaml", "sections.yaml") + " --base-model sam3-tiny", BUILD_ID="10")
    assert (done.returncode, done.stderr.splitlines()[-1][:24]) == (1, "the job did not succeed:"), done.stderr


def test_a_service_that_is_away(run: Run, folder: Path) -> None:
    script = folder / "train_in_ci.py"
    script.write_text(script.read_text().replace("Client()", "Client(retry_for_s=1)"))
    done = run(line("script"), BUILD_ID="11", SAM3_API_URL=f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (3, "")


def test_the_files_of_build_platforms_call_it_so() -> None:
    github, gitlab = (yaml.safe_load(example(GUIDE, kind)) for kind in ("github", "gitlab"))
    ran = [step["run"] for step in github["jobs"]["train"]["steps"] if "run" in step]
    called = line("script").replace("$BUILD_ID", "{}")
    assert ran[1] == called.format("$GITHUB_RUN_ID")
    assert gitlab["train"]["script"] == [ran[0], called.format("$CI_PIPELINE_ID")]
