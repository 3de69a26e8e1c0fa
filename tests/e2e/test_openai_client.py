"""A model is tuned for real by OpenAI's own client, with strict validation; and the guide's example runs as written."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import OpenAI

from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e.guides import ADDRESS, example
from tests.e2e.test_job import FAST, QUICK
from tests.stack import Service, started

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 240
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openai")
    with started(folder, folder / "data", **FAST) as running:
        yield running


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    draw([str(tmp_path / "shapes.zip"), "--train", "4", "--valid", "2"])
    return tmp_path / "shapes.zip"


def test_from_a_file_to_a_model_that_answers(service: Service, archive: Path) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", _strict_response_validation=True) as client:
        upload = client.uploads.upload_file_chunked(
            file=archive, mime_type="application/zip", purpose="fine-tune", part_size=20_000
        )
        assert upload.file is not None
        file = client.files.wait_for_processing(upload.file.id, poll_interval=0.2)
        assert (file.status, file.status_details) == ("processed", None)
        training = {
            name: value for name, value in QUICK["training"].items() if name not in ("max_epochs", "batch_size")
        }
        job = client.fine_tuning.jobs.create(
            model="sam3-tiny",
            training_file=file.id,
            hyperparameters={"n_epochs": 2, "batch_size": 2},
            extra_body={"config": QUICK | {"training": training}},
        )
        deadline = time.monotonic() + TIMEOUT_S
        while job.status not in ENDED:
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert (job.status, job.error) == ("succeeded", None)

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
        assert events[0].message == "Job succeeded"
        assert all(event.message for event in events)
        assert {"message", "metrics"} == {event.type for event in events}
        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert checkpoints[0].step_number == 4
        assert checkpoints[0].metrics.train_loss is not None
        assert "val/segm_mAP" in (checkpoints[0].metrics.model_extra or {})

        rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
        assert [row["step"] for row in rows if row["name"] == "train/loss"] == ["1", "2", "3", "4"]
        assert job.fine_tuned_model is not None
        assert job.fine_tuned_model in [model.id for model in client.models.list()]
        with zipfile.ZipFile(io.BytesIO(client.files.content(job.fine_tuned_model).content)) as adapter:
            assert "adapter_model.safetensors" in adapter.namelist()


def test_the_example_of_the_guide(service: Service, archive: Path) -> None:
    script = example("docs/openai-client.md", "python").replace(ADDRESS, service.url)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "Job succeeded" in done.stdout
    assert "val/segm_mAP" in done.stdout
    assert zipfile.is_zipfile(archive.parent / "adapter.zip")
    assert (archive.parent / "metrics.csv").read_text().startswith("name,step,")
