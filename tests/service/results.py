"""Rows and files as a worker leaves them, for tests of what the API makes of them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image

from sam3_lora.config import JobConfig
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.states import JobState
from service.shared.zip_layout import ZipLayout, members_of, reader_of
from service.usecases.comparisons import ComparisonSpec, create_comparison
from tests.service.conftest import add_dataset, add_job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database


def claimed_job(database: Database, **values: Any) -> Job:
    add_job(database, resolved={"config": JobConfig().model_dump(mode="json")}, **values)
    with database.write() as unit:
        job = unit.jobs.claim("w-1")
    assert job is not None
    return job


def add_model(database: Database, storage: Storage, folder: Path, **values: Any) -> str:
    """Id of the model of a new job that succeeded."""
    job = claimed_job(database, **values)
    source = folder / job.id
    source.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "checkpoint.json"):
        (source / name).write_text(f"{name} of {job.id}")
    members = members_of(source)
    manifest = CheckpointManifest(
        *("best", 3, 30, "segm_mAP", 0.5),
        files={m.name: storage.put_file(f"jobs/{job.id}/{m.name}", source / m.name) for m in members},
        crc32={m.name: m.crc32 for m in members},
        archive_sha256=ZipLayout(members).sha256(reader_of(source)),
    )
    with database.write() as unit:
        unit.checkpoints.publish(job.id, job.epoch, manifest)
    with database.write() as unit:
        ended = unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"model_id": None, "steps": 30})
        model = unit.models.add_best(ended)
    assert model is not None
    return model.id


def publish(database: Database, storage: Storage, job: Job, folder: Path, place: str, **files: str) -> None:
    """Publish an artifact of a running job; `files` by name with `_` for `.`, or `content` of the place itself."""
    published = {}
    for name, content in files.items():
        full = place if name == "content" else f"{place}/{name.replace('_', '.')}"
        (folder / "file").write_text(content)
        published[full] = storage.put_file(f"jobs/{job.id}/artifacts/{full}", folder / "file")
    with database.write() as unit:
        unit.artifacts.publish(job.id, job.epoch, place, published)


def report_evaluation(database: Database, job: Job, model: str, epoch: int, value: float | None, **more: Any) -> None:
    row = {"ids": [1], "name": "bolt", "segm_mAP": value, "bbox_mAP": None}
    data = {
        "model": model,
        "epoch": epoch,
        "step": 10 * epoch,
        "metrics": {"segm_mAP": value, "absent_FPR": 0.25 if model == "tuned" else 0.5},
        "per_category": [row],
        "images": 4,
        "notes": [],
        "absent_prompts": [{"prompt": "giraffe", "false_alarms": 1, "images": 4}],
        **more,
    }
    with database.write() as unit:
        unit.events.append(job.id, job.epoch, [NewEvent("evaluation", "", json.loads(json.dumps(data)))])


def image_bytes(size: tuple[int, int] = (60, 40), form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, form, **options)
    return buffer.getvalue()


def add_comparison(database: Database, settings: Settings, models: Sequence[str], **values: Any) -> str:
    """Id of a new comparison, queued."""
    spec = {"name": None, "split": None, "max_images": None, "metric": "segm_mAP"} | values
    if "dataset_id" not in spec:
        spec["dataset_id"] = add_dataset(database)
    with database.write() as unit:
        return create_comparison(unit, settings, ComparisonSpec(models=models, **spec)).id


def finish_comparison(database: Database, storage: Storage, folder: Path, values: tuple[float | None, ...]) -> str:
    """Id of the oldest comparison that is due, made to succeed with these `segm_mAP`s."""
    with database.write() as unit:
        held = unit.comparisons.claim("w-1")
    assert held is not None
    evaluations = [
        {
            "metrics": {"segm_mAP": value, "absent_FPR": 0.25 * number},
            "per_category": [{"ids": [1], "name": "bolt", "segm_mAP": value, "bbox_mAP": None}],
            "images": 4,
            "notes": ["no masks"] if value is None else [],
            "absent_prompts": [{"prompt": "giraffe", "false_alarms": number, "images": 4}],
        }
        for number, value in enumerate(values)
    ]
    files = {}
    for name in (
        "report.html",
        *(f"{n}/{part}.json" for n in (0, 1) for part in ("truth", "predictions", "evaluation")),
    ):
        (folder / "file").write_text(f"{name} of {held.id}")
        files[name] = storage.put_file(f"comparisons/{held.id}/e{held.epoch}/{name}", folder / "file")
    with database.write() as unit:
        result = {"split": "validation", "evaluations": evaluations}
        unit.comparisons.succeed(held.id, held.epoch, files=files, result=result, images_done=8, images_total=8)
    return held.id
