"""An installation with rows in every table and a file for every row that names one, made as the service makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from sam3_lora.config import JobConfig
from service.shared.dataset_files import archive_key, preview_key
from service.shared.db.models import Base, Prediction, Sweep
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.db.repositories.quotas import Limits
from service.shared.ids import new_id
from service.shared.states import DatasetState, JobState
from service.usecases import access
from service.usecases.access import Scope
from service.usecases.datasets import DatasetSpec, register_dataset
from service.usecases.models import request_export
from service.usecases.predictions import Question, ask, image_key
from service.usecases.uploads import UploadSpec, complete_upload, create_upload, store_part
from tests.service.conftest import new_job
from tests.service.results import add_comparison, add_model, finish_comparison, publish
from tests.service.webhooks import add_endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database


def fill(database: Database, settings: Settings, storage: Storage, folder: Path) -> str:
    """Do everything once; `folder` is for scratch. Id of a job that runs."""

    def stored(key: str, content: str) -> StoredFile:
        return storage.put(key, [content.encode()], size_bytes=len(content))

    add_endpoint(database, settings)
    dataset_id = _add_dataset(database, stored)
    _add_uploads(database, settings, storage, folder)
    model_id = add_model(database, storage, folder, dataset_id=dataset_id, tags=["night"], labels={"ticket": "A-1"})
    add_comparison(database, settings, ["sam3-tiny", model_id], dataset_id=dataset_id)
    finish_comparison(database, storage, folder, (0.25, 0.5))
    _add_work(database, settings, stored, model_id)
    with database.write() as unit:
        unit.estimates.ask("0" * 64, base_model="sam3-tiny", config=JobConfig().model_dump(mode="json"))
        made = access.create_key(unit, access.EVERYTHING, name="ci", project="first", scopes=[Scope.READ], lasts_s=None)
        access.sign_in(unit, made.secret)
        unit.idempotency.reserve("jobs.create", {"key-1": "0" * 64})
        unit.quotas.set("first", Limits(max_datasets=3))
        unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="CPU")
        sweep = unit.sweeps.add(Sweep(id=new_id("sweep"), name="rates", request={"grid": {}}))
        unit.jobs.add(new_job(dataset_id, sweep_id=sweep.id, trial={"training.learning_rate": 1e-4}, priority=1))
    return _add_running_job(database, storage, dataset_id, folder)


def counts(database: Database) -> dict[str, int]:
    """Rows of each table."""
    with database.read() as unit:
        return {
            table.name: unit.session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in Base.metadata.sorted_tables
        }


def _add_dataset(database: Database, stored: Any) -> str:
    dataset_id = new_id("ds")
    archive = stored(archive_key(dataset_id), "an archive")
    stored(preview_key(archive.key, 0), "a picture")
    with database.write() as unit:
        register_dataset(unit, dataset_id, DatasetSpec("shapes", "shapes.zip"), archive)
    with database.write() as unit:
        held = unit.datasets.claim("w-1")
        assert held is not None
        picture = {"split": "train", "file_name": "a.jpg", "width": 1, "height": 1, "instances": 1}
        report = {"status": "valid", "summary": {}, "issues": [], "stats": {}}
        preview = [picture | {"sha256": "0" * 64, "bytes": 9}]
        unit.datasets.finish(dataset_id, held.epoch, DatasetState.READY, report=report, preview=preview)
    return dataset_id


def _add_uploads(database: Database, settings: Settings, storage: Storage, folder: Path) -> None:
    (folder / "part").write_text("all of it")
    spec = UploadSpec("photos.zip", 9, None, None)
    for is_complete in (True, False):
        with database.write() as unit:
            upload_id = create_upload(unit, settings, spec).id
        store_part(database, storage, upload_id, 1, folder / "part")
        if is_complete:
            complete_upload(database, storage, upload_id)


def _add_work(database: Database, settings: Settings, stored: Any, model_id: str) -> None:
    with database.write() as unit:
        request_export(unit, settings, model_id, "peft")
    with database.write() as unit:
        export = unit.exports.claim("w-1")
        assert export is not None
        file = stored(f"exports/{export.id}/e1/peft.zip", "an export")
        made = {"filename": "peft.zip", "size_bytes": file.size_bytes, "sha256": file.sha256, "storage_key": file.key}
        unit.exports.succeed(export.id, export.epoch, **made)
    prediction_id = new_id("pred")
    image = stored(image_key(prediction_id), "an image")
    with database.write() as unit:
        question = Question(["heart"], [], 0.5, overlay=True)
        ask(unit, settings, prediction_id, model_id, question, image=image, size=(8, 6))
    with database.write() as unit:
        held: Prediction | None = unit.predictions.claim("w-1")
        assert held is not None
        drawn = stored(f"predictions/{prediction_id}/overlay.png", "a drawing")
        overlay = {"overlay_key": drawn.key, "overlay_bytes": drawn.size_bytes, "overlay_sha256": drawn.sha256}
        unit.predictions.succeed(held.id, held.epoch, result=[{"prompt": "heart", "detections": []}], **overlay)


def _add_running_job(database: Database, storage: Storage, dataset_id: str, folder: Path) -> str:
    with database.write() as unit:
        unit.jobs.add(new_job(dataset_id, name="runs", priority=90))
    with database.write() as unit:
        job: Job | None = unit.jobs.claim("w-1")
    assert job is not None
    with database.write() as unit:
        unit.events.append(job.id, job.epoch, [NewEvent("message", "Begun")])
        unit.metrics.add(job.id, job.epoch, step=1, values={"train/loss": 0.5, "train/lr": 1e-4}, training_epoch=0.5)
        unit.logs.append(job.id, job.epoch, "a line\n")
    publish(database, storage, job, folder, "report.html", content="a report")
    (folder / "weights").write_text("weights")
    file = storage.put_file(f"jobs/{job.id}/e{job.epoch}/adapter_model.safetensors", folder / "weights")
    manifest = CheckpointManifest("epoch", 1, 10, None, None, files={"adapter_model.safetensors": file})
    with database.write() as unit:
        unit.checkpoints.publish(job.id, job.epoch, manifest)
        assert unit.jobs.get(job.id).state is JobState.RUNNING
    return job.id
