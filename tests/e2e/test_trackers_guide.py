"""The guide to trackers as it is written: a service whose jobs are runs of MLflow."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from sam3_lora.client import Client
from sam3_lora.config import OutputConfig
from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e.guides import example
from tests.stack import started

GUIDE = "docs/trackers.md"


def test_the_section_of_a_run_is_one() -> None:
    output = OutputConfig.model_validate(yaml.safe_load(example(GUIDE, "yaml"))["output"])
    assert (output.trackers, output.project) == (["mlflow"], "pallets")


@pytest.mark.timeout(600)
def test_jobs_of_a_service_are_runs_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict(line.split("=", 1) for line in shlex.split(example(GUIDE, "settings")))
    told["MLFLOW_TRACKING_URI"] = store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2", "--concepts", "heart"])
    config = {"training": {"max_epochs": 1, "use_amp": False}}
    with started(tmp_path, tmp_path / "data") as service, Client(service.url) as client:
        dataset = client.datasets.upload(tmp_path / "shapes.zip").wait()
        job = client.jobs.create(dataset, name="first", base_model="sam3-tiny", config=config).wait()
        losses = job.metrics().series["train/loss"]
    assert job.status == "succeeded"
    tracked = MlflowClient(store)
    experiment = tracked.get_experiment_by_name("pallets")
    assert experiment is not None
    (run,) = tracked.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (f"first {job.id}", "FINISHED")
    history = tracked.get_metric_history(run.info.run_id, "train/loss")
    assert len(history) == len(losses) > 0
