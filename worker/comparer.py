"""Comparisons: fetch the dataset and the adapters, have a child process measure both models, store what it found."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, get_args

import structlog

from sam3_lora.child import EXIT_CONFIG, EXIT_FAILED
from sam3_lora.coco.layout import find_layout
from sam3_lora.config import BaseName, ComparisonConfig, parse
from sam3_lora.events import Event, EventType
from worker import failures
from worker.archive import unpacked
from worker.failures import WorkError
from worker.model_files import fetch_model
from worker.supervisor import Cut, Ending, Limits, Trainer
from worker.work import WorkRunner

if TYPE_CHECKING:
    from pathlib import Path

    from sam3_lora.coco.layout import Layout, Split
    from service.shared.db.models import Comparison
    from service.shared.db.repositories.comparisons import ComparisonRepository
    from service.shared.storage import StoredFile
    from service.shared.unit_of_work import UnitOfWork
    from worker.lease import Lease
    from worker.work import Me, Places

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "sam3_lora.evaluation.process")
FIGURES = ("0/evaluation.json", "1/evaluation.json")
FILES = ("report.html", *FIGURES, *(f"{n}/{name}.json" for n in (0, 1) for name in ("truth", "predictions")))
MAX_LOG_BYTES = 2**20
SAID_BYTES = 2000  # of the process's last words, for the error
MAX_COUNT = 2**53


class CompareRunner(WorkRunner["Comparison"]):
    """Makes the comparisons that one GPU worker claims, one at a time."""

    noun = "comparison"

    def __init__(self, *places: *Places, command: tuple[str, ...] = COMMAND, **me: Unpack[Me]) -> None:
        """`command`: starts the process that measures; `--config` and the lease are added to it."""
        super().__init__(*places, **me)
        self._command = command
        self._progress: dict[str, int | None] = {}

    def _rows(self, unit: UnitOfWork) -> ComparisonRepository:
        return unit.comparisons

    def _claim(self, unit: UnitOfWork) -> Comparison | None:
        self._progress = {"images_done": None, "images_total": None}
        return unit.comparisons.claim(self._worker_id, **self._progress)

    def _renew(self, unit: UnitOfWork, comparison: Comparison) -> None:
        unit.comparisons.heartbeat(comparison.id, comparison.epoch, **self._progress)

    def _make(self, comparison: Comparison, folder: Path, lease: Lease) -> dict[str, Any]:
        check, output = partial(self._check, lease), folder / "output"
        with self._database.read() as unit:
            dataset = unit.datasets.get(comparison.dataset_id)
        models = [self._fetched(entry, folder / f"adapter-{n}", lease) for n, entry in enumerate(comparison.models)]
        with unpacked(dataset, self._storage, self._workspace, on_chunk=check, insist=lease.insist) as root:
            name, split = _chosen(find_layout(root), comparison.split)
            config = {
                "models": models,
                "images": str(split.images),
                "annotations": str(split.annotations),
                "checkpoint": None if self._settings.checkpoint is None else str(self._settings.checkpoint),
                "max_images": comparison.max_images,
                "metric": comparison.metric,
                "title": comparison.name,
                "facts": {"Dataset": f"{dataset.name} ({dataset.id})", "Split": name, **_named(comparison)},
                "output": str(output),
            }
            (folder / "config.json").write_text(parse(ComparisonConfig, config).model_dump_json())
            self._measure(folder, lease)
        made = {file: _made(output, file) for file in FILES}
        evaluations = [json.loads(made[file].read_bytes()) for file in FIGURES]
        files = {file: self._store(comparison, file, path, lease) for file, path in made.items()}
        return {"result": {"split": name, "evaluations": evaluations}, "files": files, **self._progress}

    def _fetched(self, entry: dict[str, Any], folder: Path, lease: Lease) -> dict[str, Any]:
        """A model as the process is told of it, its adapter in the folder."""
        adapter = None
        if entry["model"] not in get_args(BaseName):
            with self._database.read() as unit:
                model = unit.models.get(entry["model"])
            fetch_model(model, self._storage, folder, on_chunk=partial(self._check, lease))
            adapter = str(folder)
        return {"name": entry["name"], "base": entry["base_model"], "adapter": adapter}

    def _measure(self, folder: Path, lease: Lease) -> None:
        """Run the process to its end.

        Raises:
            WorkError: if it fails or hangs.
        """
        command = [*self._command, "--config", str(folder / "config.json")]
        command += ["--lease-timeout", f"{self._settings.self_fence_s:g}"]
        silence_s, said_file = self._settings.no_progress_timeout_s, folder / "said"
        limits = Limits(
            runtime_s=self._settings.comparison_timeout_s,
            silence_s=silence_s,
            grace_s=self._settings.kill_grace_s,
            log_bytes=MAX_LOG_BYTES,
        )
        (folder / "tmp").mkdir()
        said_file.touch()
        with (
            Trainer(command, log=said_file, temporary=folder / "tmp", limits=limits) as process,
            lease.passed_on(process.renew),
        ):
            ending = process.supervise(self._note, lambda: self._check(lease))
        if ending.returncode != failures.EXIT_DONE or ending.result is None:
            said = failures.last_words(said_file, SAID_BYTES)
            log.warning("measuring_failed", status=ending.returncode, said=said)
            raise _failure(ending, limits, said)

    def _note(self, event: Event) -> None:
        done, total = (event.data.get(name) for name in ("images_done", "images_total"))
        # What the process says is not trusted: it ends up in a column of integers.
        if event.type is EventType.PROGRESS and type(done) is type(total) is int and 0 <= done <= total <= MAX_COUNT:
            self._progress = {"images_done": done, "images_total": total}

    def _store(self, comparison: Comparison, name: str, path: Path, lease: Lease) -> StoredFile:
        key = f"comparisons/{comparison.id}/e{comparison.epoch}/{name}"
        check = partial(self._check, lease)
        return lease.insist(lambda: self._storage.put_file(key, path, on_chunk=check))


def _chosen(layout: Layout, wanted: str | None) -> tuple[str, Split]:
    """The split to measure on, and its name."""
    splits = {name: split for name, split in layout.splits().items() if name != "test"}
    name = wanted or ("validation" if "validation" in splits else "train")
    if name not in splits:
        raise WorkError(
            "split_missing", f"The dataset has no {name} split.", "Leave split out to measure on what it has."
        )
    return name, splits[name]


def _named(comparison: Comparison) -> dict[str, str]:
    """Both models as the report's head has them."""
    first, second = (
        entry["name"] if entry["model"] in entry["name"] else f"{entry['name']} ({entry['model']})"
        for entry in comparison.models
    )
    return {"Judged": second, "Against": first}


def _made(output: Path, name: str) -> Path:
    """A file that the process has written, and not a link to something else."""
    path = output / name
    if path.resolve() != output.resolve() / name or not path.is_file():
        raise WorkError("internal", f"the process that measured left no file {name}", "Report this.")
    return path


def _failure(ending: Ending, limits: Limits, said: str) -> WorkError:
    hint = "Compare on fewer images (max_images), or look into the worker's machine."
    if ending.cut is Cut.RUNTIME:
        return WorkError("time_limit", f"measuring took longer than {limits.runtime_s:g} s", hint)
    if ending.cut is not None:
        return WorkError("time_limit", f"no image was measured for {limits.silence_s:g} s", hint, retryable=True)
    if ending.error is not None and ending.returncode in (EXIT_CONFIG, EXIT_FAILED):
        return WorkError(**failures.of_exit(ending.returncode, ending.error).to_dict())
    message = f"the process that measured ended with status {ending.returncode}: {said}"
    return WorkError("internal", message, "It may have run out of memory.", retryable=True)
