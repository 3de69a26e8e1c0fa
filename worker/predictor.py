"""One prediction from claim to answer: fetch adapter and image, ask the process that holds the model, store."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import structlog

from service.shared.errors import LeaseLostError, NotFoundError, StorageError
from worker import failures, model_process
from worker.failures import Failure
from worker.lease import Lease
from worker.model_files import fetch_model
from worker.model_process import ModelProcess, ModelProcessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Prediction
    from service.shared.settings import Settings
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database
    from worker.workspace import Workspace

log = structlog.get_logger(__name__)

KEPT_FOLDERS = 16  # adapters on this machine's disk


class _DrainingError(Exception):
    """The worker shuts down before the answer."""


class _RefusedError(Exception):
    """The model's process answered with an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class PredictRunner:
    """Answers the predictions that one worker claims, one at a time; a context manager."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        workspace: Workspace,
        *,
        worker_id: str,
        is_draining: Callable[[], bool],
        command: tuple[str, ...] = model_process.COMMAND,
    ) -> None:
        """`command`: starts the process that holds the model; options are added to it."""
        self._settings = settings
        self._database = database
        self._storage = storage
        self._workspace = workspace
        self._worker_id = worker_id
        self._is_draining = is_draining
        options = ["--device", settings.predict_device, "--keep", str(settings.predict_adapters)]
        if settings.checkpoint is not None:
            options += ["--checkpoint", str(settings.checkpoint)]
        self._process = ModelProcess([*command, *options])
        self._resources = contextlib.ExitStack()
        self._folders: OrderedDict[str, Path] = OrderedDict()

    def __enter__(self) -> PredictRunner:
        self._adapters = self._resources.enter_context(self._workspace.attempt("adapters"))
        self._resources.callback(self._process.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def run_next(self) -> bool:
        """Claim the oldest prediction that is due and answer it; False if there is none."""
        claimed_at = time.monotonic()
        with self._database.write() as unit:
            prediction = unit.predictions.claim(self._worker_id)
        if prediction is None:
            self._process.close_if_idle(self._settings.predict_idle_s)
            return False
        with structlog.contextvars.bound_contextvars(prediction_id=prediction.id, epoch=prediction.epoch):
            beat = Lease(lambda: self._beat(prediction), self._settings, claimed_at=claimed_at, name=prediction.id)
            try:
                with beat as lease:
                    self._answer_and_finish(prediction, lease)
            except LeaseLostError as error:
                log.warning("lease_lost", error=error.message)
        return True

    def _beat(self, prediction: Prediction) -> None:
        with self._database.write() as unit:
            unit.predictions.heartbeat(prediction.id, prediction.epoch)

    def _answer_and_finish(self, prediction: Prediction, lease: Lease) -> None:
        try:
            with self._workspace.attempt(prediction.id) as folder:
                result, overlay = self._answer(prediction, lease, folder)
        except (LeaseLostError, NotFoundError):  # a model that was deleted took its predictions along
            raise LeaseLostError(f"the lease of {prediction.id} was lost") from None
        except _DrainingError:
            lease.insist(lambda: self._give_back(prediction))
        except _RefusedError as error:
            failure = error.failure
            lease.insist(lambda: self._fail(prediction, failure))
        except ModelProcessError as error:
            failure = Failure("worker_lost", str(error), "Ask again, with a smaller image or fewer prompts.", True)
            lease.insist(lambda: self._fail(prediction, failure))
        except Exception as error:  # the edge of a prediction: whatever happened is its error, and the worker goes on
            log.exception("prediction_failed")
            failure = failures.of_exception(error)
            lease.insist(lambda: self._fail(prediction, failure))
        else:
            lease.insist(lambda: self._succeed(prediction, result, overlay))

    def _answer(
        self, prediction: Prediction, lease: Lease, folder: Path
    ) -> tuple[list[dict[str, Any]], StoredFile | None]:
        def check() -> None:
            lease.check()
            if self._is_draining():
                raise _DrainingError

        adapter = self._adapter(prediction.model_id, check)
        image, result, overlay = folder / "image", folder / "result.json", folder / "overlay.png"
        try:
            fetched = self._storage.fetch(prediction.image_key, image, on_chunk=check)
        except NotFoundError as error:
            raise StorageError("Storage no longer holds the image of this prediction: ask again.") from error
        if fetched.sha256 != prediction.image_sha256:
            raise StorageError("Storage holds a damaged image of this prediction: ask again.")
        request = {
            "model": prediction.model_id,
            "adapter": str(adapter),
            "image": str(image),
            "prompts": prediction.request["prompts"],
            "boxes": prediction.request["boxes"],
            "min_score": prediction.request["min_score"],
            "result": str(result),
            "overlay": str(overlay) if prediction.request["overlay"] else None,
        }
        answer = self._process.ask(request, timeout_s=self._settings.predict_timeout_s, check=check)
        if "error" in answer:
            raise _RefusedError(Failure(**answer["error"]))
        stored = None
        if overlay.exists():
            key = f"predictions/{prediction.id}/overlay-{secrets.token_hex(4)}.png"
            stored = self._storage.put_file(key, overlay, on_chunk=check)
        return json.loads(result.read_bytes()), stored

    def _adapter(self, model_id: str, check: Callable[[], None]) -> Path:
        """The adapter's folder, fetched unless this worker has it."""
        if model_id not in self._folders:
            with self._database.read() as unit:
                model = unit.models.get(model_id)
            folder = self._adapters / f"{model_id}-{secrets.token_hex(4)}"
            fetch_model(model, self._storage, folder, on_chunk=check)
            self._folders[model_id] = folder
        self._folders.move_to_end(model_id)
        while len(self._folders) > KEPT_FOLDERS:
            shutil.rmtree(self._folders.popitem(last=False)[1])
        return self._folders[model_id]

    def _succeed(self, prediction: Prediction, result: list[dict[str, Any]], overlay: StoredFile | None) -> None:
        values: dict[str, Any] = {"result": result}
        if overlay is not None:
            values |= {
                "overlay_key": overlay.key,
                "overlay_bytes": overlay.size_bytes,
                "overlay_sha256": overlay.sha256,
            }
        with self._database.write() as unit:
            unit.predictions.succeed(prediction.id, prediction.epoch, **values)

    def _fail(self, prediction: Prediction, failure: Failure) -> None:
        with self._database.write() as unit:
            unit.predictions.fail(prediction.id, prediction.epoch, failure.to_dict())

    def _give_back(self, prediction: Prediction) -> None:
        with self._database.write() as unit:
            unit.predictions.give_back(prediction.id, prediction.epoch)
