"""One prediction from claim to answer: fetch adapter and image, ask the process that holds the model, store."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from service.shared.errors import NotFoundError, StorageError
from worker import model_process
from worker.failures import WorkError
from worker.model_files import fetch_model
from worker.model_process import ModelProcess, ModelProcessError
from worker.work import WorkRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Prediction
    from service.shared.db.repositories.predictions import PredictionRepository
    from service.shared.unit_of_work import UnitOfWork
    from worker.lease import Lease
    from worker.work import Me, Places

KEPT_FOLDERS = 16  # adapters on this machine's disk


class PredictRunner(WorkRunner["Prediction"]):
    """Answers the predictions that one worker claims, one at a time; a context manager."""

    noun = "prediction"

    def __init__(self, *places: *Places, command: tuple[str, ...] = model_process.COMMAND, **me: Unpack[Me]) -> None:
        """`command`: starts the process that holds the model; options are added to it."""
        super().__init__(*places, **me)
        settings = self._settings
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
        has_run = super().run_next()
        if not has_run:
            self._process.close_if_idle(self._settings.predict_idle_s)
        return has_run

    def _rows(self, unit: UnitOfWork) -> PredictionRepository:
        return unit.predictions

    def _make(self, prediction: Prediction, folder: Path, lease: Lease) -> dict[str, Any]:
        check = partial(self._check, lease)
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
            "untuned": prediction.request.get("untuned", False),
            "image": str(image),
            "prompts": prediction.request["prompts"],
            "boxes": prediction.request["boxes"],
            "min_score": prediction.request["min_score"],
            "result": str(result),
            "overlay": str(overlay) if prediction.request["overlay"] else None,
        }
        try:
            answer = self._process.ask(request, timeout_s=self._settings.predict_timeout_s, check=check)
        except ModelProcessError as error:
            hint = "Ask again, with a smaller image or fewer prompts."
            raise WorkError("worker_lost", str(error), hint, retryable=True) from error
        if "error" in answer:
            raise WorkError(**answer["error"])
        made: dict[str, Any] = {"result": json.loads(result.read_bytes())}
        if overlay.exists():
            key = f"predictions/{prediction.id}/overlay-{secrets.token_hex(4)}.png"
            stored = self._storage.put_file(key, overlay, on_chunk=check)
            made |= {"overlay_key": stored.key, "overlay_bytes": stored.size_bytes, "overlay_sha256": stored.sha256}
        return made

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
