"""The Python client for real: from a folder to an adapter that answers, over a network that cuts connections."""

from __future__ import annotations

import threading
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from sam3_lora.client import Client, _patience
from sam3_lora.client._sync import uploads
from sam3_lora.lora.adapter import read_info
from tests.client.cuts import bad_network, dice
from tests.e2e.test_job import FAST, QUICK
from tests.e2e.test_job import archive as archive
from tests.stack import started

if TYPE_CHECKING:
    from pathlib import Path

    from sam3_lora.client import schemas

pytestmark = pytest.mark.timeout(900)


def test_a_folder_becomes_an_adapter_over_a_bad_network(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_patience, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(_patience, "LONGEST_DELAY_S", 0.5)
    monkeypatch.setattr(uploads, "PART_BYTES", 2**16)
    zipfile.ZipFile(archive).extractall(tmp_path / "shapes")
    told: list[Any] = []
    events: list[schemas.Event] = []
    with started(tmp_path, tmp_path / "data", **FAST) as service:
        address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
        with bad_network(address, dice(7, least=2_000)) as network, Client(network.url) as client:
            dataset = client.datasets.upload(tmp_path / "shapes").wait(timeout_s=120)
            assert dataset.summary is not None
            assert dataset.summary.images == 11
            job = client.jobs.create(dataset, base_model="sam3-tiny", config=QUICK)
            follower = threading.Thread(target=lambda: events.extend(job.events()))
            follower.start()
            client.jobs.get(job.id).wait(timeout_s=600, progress=lambda now: told.append(now.status))
            follower.join(60)
            adapter = job.download(tmp_path / "adapter")
            model = job.model()
            picture = next((tmp_path / "shapes" / "valid").glob("*.jpg"))
            tuned = model.predict(picture, ["heart", "cross"], min_score=0.0, overlay=tmp_path / "overlay.png")
            base = model.predict(picture.read_bytes(), "heart", min_score=0.0, untuned=True)
            exported = model.download(tmp_path / "peft.zip", form="peft")
            curves = job.metrics()
            assert network.cut > 3
    assert told[-1] == "succeeded"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert read_info(adapter).base_model == "sam3-tiny"
    assert tuned.results is not None
    assert base.results is not None
    assert [answer.prompt for answer in tuned.results] == ["heart", "cross"]
    assert tuned.results[0].detections != base.results[0].detections
    with Image.open(tmp_path / "overlay.png") as drawn, Image.open(picture) as plain:
        assert drawn.width >= plain.width
    assert any(name.endswith("adapter_config.json") for name in zipfile.ZipFile(exported).namelist())
    assert "train/loss" in curves.series
