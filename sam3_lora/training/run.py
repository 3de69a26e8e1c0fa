"""The training run: epochs of steps, validation, checkpoints, the best one, the report.

The library reports events and asks `should_stop()`; it never talks to a database or a queue.
"""

from __future__ import annotations

import atexit
import json
import logging
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sam3_lora.config import RunConfig
from sam3_lora.data.datapoint import collate
from sam3_lora.data.dataset import epoch_batches
from sam3_lora.errors import DatasetError, DivergedError, NothingTrainedError, Sam3LoraError
from sam3_lora.evaluation.coco_metrics import Evaluation, evaluate
from sam3_lora.evaluation.predict import Predictor
from sam3_lora.events import EventType, Level, Phase, Reporter, finite
from sam3_lora.lora.adapter import load_weights
from sam3_lora.lora.inject import adapter_parameters
from sam3_lora.lora.layers import adapters_off
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.training import checkpoint
from sam3_lora.training.optim import build_optimizer, learning_rate, set_learning_rate
from sam3_lora.training.reporting import RunReporter
from sam3_lora.training.seed import random_state, restore_random_state, seed_everything
from sam3_lora.training.setup import Adapted, Data, choose_resolution, prepare_data, prepare_model
from sam3_lora.training.step import Stepper

log = logging.getLogger(__name__)
MAX_TEMPORARY_PATH = 60  # bytes; what multiprocessing appends takes up to 45


class Stop(StrEnum):
    """What `should_stop()` may ask for."""

    FINISH = "finish"  # end early and well: evaluate, save, succeed
    INTERRUPT = "interrupt"  # save what `--resume` needs and leave at once


class InterruptedRunError(Sam3LoraError):
    """The run was interrupted; `checkpoint` is where it goes on from (None: nothing was trained yet)."""

    code = "interrupted"
    retryable = True

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__("the run was interrupted", hint="resume it from the checkpoint")
        self.checkpoint = checkpoint


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps besides tensors."""

    epoch: int = 0  # 0-based epoch being trained
    batches_done: int = 0  # micro-batches of it that are done
    step: int = 0  # optimiser steps so far, skipped ones included
    applied_steps: int = 0
    skipped_in_a_row: int = 0
    skipped_steps: int = 0
    best: dict[str, Any] | None = None  # value, epoch, step, evaluation
    base: dict[str, Any] | None = None  # evaluation of the untuned model
    validations_without_gain: int = 0
    train_seconds: float = 0.0
    ended: bool = False  # the last epoch is trained, evaluated and saved


@dataclass(frozen=True)
class Report:
    """The outcome of a run; `to_dict()` is `report.json` and the `result` event."""

    steps: int
    epochs: int
    stopped_early: bool
    metric: str
    best: dict[str, Any] | None
    base: dict[str, Any] | None
    trainable_parameters: int
    trainable_percent: float
    skipped_steps: int
    train_seconds: float
    peak_memory_bytes: int
    checkpoint: str  # of the best adapter, relative to the run directory
    notices: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return finite(asdict(self))  # type: ignore[no-any-return]


def train(
    config: RunConfig,
    *,
    reporter: Reporter = lambda event: None,
    should_stop: Callable[[], Stop | None] = lambda: None,
    resume: Path | None = None,
) -> Report:
    """Run a training from configuration to report.

    Args:
        reporter: receives every event, in order, in this thread.
        should_stop: asked between steps and between evaluated images.
        resume: a checkpoint folder or a run directory to go on from.

    Raises:
        InterruptedRunError: after saving, where `should_stop` asked for it.
        Sam3LoraError: any other named failure; the last good checkpoint is intact.
    """
    config.output.dir.mkdir(parents=True, exist_ok=True)
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    reports = RunReporter(reporter, config.output.dir, tensorboard=config.output.tensorboard)
    try:
        return _Run(config, reports, should_stop).run(resume)
    finally:
        reports.close()


class _Run:
    """State and steps of one run, in the order they happen."""

    def __init__(self, config: RunConfig, reports: RunReporter, should_stop: Callable[[], Stop | None]) -> None:
        self.config, self.reports, self.should_stop = config, reports, should_stop
        self.folder = config.output.dir
        self.checkpoints = self.folder / "checkpoints"
        self.progress = Progress()
        self.finishing = False
        self.data: Data
        self.adapted: Adapted
        self.stepper: Stepper

    # --- set-up -----------------------------------------------------------------------------------------

    def run(self, resume: Path | None) -> Report:
        self.reports.phase(Phase.STARTING)
        seed_everything(self.config.training.seed)
        self.checkpoints.mkdir(exist_ok=True)
        checkpoint.recover(self.checkpoints)
        resolution = choose_resolution(self.config.model, self.config.dataset.resolution)
        self.data = prepare_data(self.config, resolution)
        self.reports.phase(Phase.LOADING_MODEL)
        self.adapted = prepare_model(self.config, resolution, self.data.concepts)
        self._build_stepper()
        self._write_resolved(resolution)
        for notice in self.data.notices:
            self.reports.message(notice, Level.WARNING)
        if resume is not None:
            self._restore(checkpoint.find_resumable(resume))
        elif self.config.evaluation.baseline and self.data.validation is not None:
            with adapters_off(self.adapted.model):
                self.progress.base = self._evaluate("base").to_dict()
        self._train_epochs()
        return self._finish()

    def _build_stepper(self) -> None:
        training = self.config.training
        adapters = adapter_parameters(self.adapted.model)
        self.stepper = Stepper(
            self.adapted.model,
            Sam3Loss(masks=training.enable_segmentation, mask_points=training.mask_points),
            build_optimizer(adapters, training, loraplus_lr_ratio=self.config.lora.loraplus_lr_ratio),
            list(adapters.values()),
            amp_dtype=self.adapted.amp_dtype,
            max_grad_norm=training.max_grad_norm,
        )
        self.batches_per_epoch = -(-len(self.data.train) // training.batch_size)
        self.steps_per_epoch = -(-self.batches_per_epoch // training.gradient_accumulation_steps)
        self.total_steps = self.steps_per_epoch * training.max_epochs
        if training.max_steps is not None:
            self.total_steps = min(self.total_steps, training.max_steps)

    def _write_resolved(self, resolution: int) -> None:
        values = self.config.model_dump(mode="json")
        values["dataset"]["resolution"] = resolution
        values["training"]["device"] = self.adapted.device.type
        (self.folder / "config.resolved.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        injection = self.adapted.injection
        self.reports.event(
            EventType.RESOLVED,
            {"config": values, "base_fingerprint": self.adapted.info.base_fingerprint, **injection.to_dict()},
            f"{len(injection.modules)} modules adapted, {injection.trainable_parameters:,} trainable parameters "
            f"({injection.trainable_percent:.2f} %), {len(self.data.train)} training images, "
            f"{self.total_steps} steps on {self.adapted.device}",
        )

    def _restore(self, folder: Path) -> None:
        state = checkpoint.read_state(folder, self.config, self.adapted.info.base_fingerprint)
        load_weights(self.adapted.model, folder)
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.progress.ended &= self.progress.step >= self.total_steps  # more epochs may be asked for now
        restore_random_state(state["random"])
        self.reports.message(f"resumed after step {self.progress.step} of {self.total_steps}")

    # --- training ---------------------------------------------------------------------------------------

    def _train_epochs(self) -> None:
        self.reports.phase(Phase.TRAINING)
        with closing(self._batches()) as batches:  # ends the loader processes however the run ends
            while not self.progress.ended:
                self._train_epoch(batches)
                self._end_epoch()
        if self.progress.applied_steps == 0:
            raise NothingTrainedError(
                "not one optimiser step was applied",
                hint="check the data and the learning rate; the log names every skipped step",
            )

    def _train_epoch(self, batches: Iterator[Any]) -> None:
        self.adapted.model.train()
        training, progress = self.config.training, self.progress
        while progress.batches_done < self.batches_per_epoch and progress.step < self.total_steps:
            if self._asked_to_finish():
                return
            count = min(training.gradient_accumulation_steps, self.batches_per_epoch - progress.batches_done)
            began = time.monotonic()
            group = [next(batches) for _ in range(count)]
            rate = learning_rate(progress.step, self.total_steps, training)
            set_learning_rate(self.stepper.optimizer, rate)
            result = self.stepper(group)
            progress.batches_done += count
            progress.step += 1
            self._count(result.applied, result.values["loss"])
            seconds = time.monotonic() - began
            progress.train_seconds += seconds
            self.reports.step(
                {**result.values, "lr": rate},
                epoch=progress.epoch + 1,
                epochs=training.max_epochs,
                step=progress.step,
                steps=self.total_steps,
                images=sum(len(batch.img_batch) for batch in group),
                seconds=seconds,
            )

    def _count(self, applied: bool, loss: float) -> None:
        progress, limit = self.progress, self.config.training.max_nonfinite_steps
        if applied:
            progress.applied_steps += 1
            progress.skipped_in_a_row = 0
            return
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.reports.message(f"step {progress.step} skipped: loss {loss} or its gradient is not finite", Level.WARNING)
        if progress.skipped_in_a_row >= limit:
            raise DivergedError(
                f"{limit} steps in a row had a non-finite loss or gradient",
                hint="lower training.learning_rate, or set max_grad_norm; the last good checkpoint is kept",
            )

    def _batches(self) -> Generator[Any, None, None]:
        """Collated batches of the whole run from where it stands; loaders work on across epochs."""
        training, progress = self.config.training, self.progress

        def indices() -> Iterator[list[tuple[int, int]]]:
            for epoch in range(progress.epoch, training.max_epochs):
                batches = epoch_batches(len(self.data.train), training.batch_size, seed=training.seed, epoch=epoch)
                for number, batch in enumerate(batches):
                    if epoch > start_epoch or number >= start_batch:
                        yield batch

        start_epoch, start_batch = progress.epoch, progress.batches_done
        if training.num_workers > 0:
            _use_short_temporary_folder()
        loader = DataLoader(
            self.data.train,
            batch_sampler=list(indices()),
            num_workers=training.num_workers,
            collate_fn=partial(collate, masks=training.enable_segmentation),
            pin_memory=self.adapted.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator().manual_seed(training.seed),  # leaves the global generator alone
        )
        iterator = iter(loader)
        while True:
            try:
                yield next(iterator)
            except DatasetError as error:  # from a loader process: its text ends with the original message
                raise DatasetError(
                    str(error).strip().splitlines()[-1].partition("DatasetError: ")[2] or str(error)
                ) from error

    # --- end of an epoch --------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Validate, keep the best, save what `--resume` needs, and decide whether there is another epoch."""
        progress, patience = self.progress, self.config.evaluation.early_stopping_patience
        number = progress.epoch + 1
        last = self.finishing or progress.step >= self.total_steps
        value: float | None = None
        if self.data.validation is not None and (last or number % self.config.evaluation.every_epochs == 0):
            evaluation = self._evaluate("val")
            value = evaluation.metrics[self.config.evaluation.metric]
            self._keep_if_best(value, evaluation)
        elif self.data.validation is None and last:
            self._keep_if_best(None, None)
        if patience is not None and progress.validations_without_gain >= patience and not last:
            self.reports.message(f"stopped early: {patience} validations without a better metric")
            last = True
        if progress.batches_done >= self.batches_per_epoch:
            progress.epoch, progress.batches_done = number, 0
        progress.ended = last
        self._save(f"epoch_{number}", "epoch", value)
        self._prune(self.config.training.keep_checkpoints)
        if not last:
            self.reports.phase(Phase.TRAINING)

    def _evaluate(self, name: str) -> Evaluation:
        self.reports.phase(Phase.EVALUATING)
        assert self.data.validation is not None  # callers ask only where there is one
        predictor = Predictor(
            self.adapted.model,
            resolution=self.adapted.info.resolution,
            amp_dtype=self.adapted.amp_dtype,
            masks=self.config.training.enable_segmentation,
        )
        evaluation = evaluate(
            predictor,
            self.data.validation,
            self.data.validation_folder,
            self.data.concepts,
            self.config.dataset,
            max_images=self.config.evaluation.max_images,
            on_image=lambda done, total: self._raise_if_interrupted(),
        )
        epoch = self.progress.epoch + (name == "val")
        self.reports.metrics(
            {f"{name}/{key}": value for key, value in evaluation.metrics.items()}, step=self.progress.step, epoch=epoch
        )
        metric = self.config.evaluation.metric
        self.reports.event(
            EventType.EVALUATION,
            {"model": "base" if name == "base" else "tuned", "epoch": epoch, **evaluation.to_dict()},
            f"{name} after {self.progress.step} steps: {metric} {evaluation.metrics[metric]}",
        )
        return evaluation

    def _keep_if_best(self, value: float | None, evaluation: Evaluation | None) -> None:
        best = self.progress.best
        if best is not None and (value is None or (best["value"] is not None and value <= best["value"])):
            self.progress.validations_without_gain += 1
            return
        self.progress.validations_without_gain = 0
        self.progress.best = {
            "value": value,
            "epoch": self.progress.epoch + 1,
            "step": self.progress.step,
            "evaluation": None if evaluation is None else evaluation.to_dict(),
        }
        self._save("best", "best", value)

    def _save(self, name: str, kind: str, value: float | None) -> Path:
        self.reports.phase(Phase.SAVING_CHECKPOINT)
        progress = self.progress
        summary = {
            "kind": kind,
            "epoch": progress.epoch + (progress.batches_done > 0),  # 1-based
            "step": progress.step,
            "metric": self.config.evaluation.metric,
            "value": value,
        }
        folder = self.checkpoints / name
        state = None if kind == "best" else self._state()
        checkpoint.write_checkpoint(folder, self.adapted.model, self.adapted.info, summary, state)
        self.reports.event(
            EventType.CHECKPOINT, {"folder": f"checkpoints/{name}", **summary}, f"saved checkpoints/{name}"
        )
        return folder

    def _state(self) -> dict[str, Any]:
        return {
            "config": checkpoint.comparable(self.config),
            "base_fingerprint": self.adapted.info.base_fingerprint,
            "progress": asdict(self.progress),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "random": random_state(),
        }

    def _prune(self, keep: int) -> None:
        resumable = [f.parent for f in self.checkpoints.glob(f"*/{checkpoint.STATE_FILE}")]
        by_age = sorted(resumable, key=lambda folder: int(checkpoint.read_summary(folder)["step"]))
        for folder in by_age[:-keep]:
            shutil.rmtree(folder)

    # --- stopping and finishing ---------------------------------------------------------------------------

    def _asked_to_finish(self) -> bool:
        stop = self._raise_if_interrupted()
        limit = self.config.training.max_seconds
        if self.progress.applied_steps > 0 and not self.finishing:
            if stop is Stop.FINISH:
                self.reports.message("asked to finish: evaluating and saving what is trained")
                self.finishing = True
            elif limit is not None and self.progress.train_seconds >= limit:
                self.reports.message(f"training.max_seconds ({limit:g}) is reached: evaluating and saving")
                self.finishing = True
        return self.finishing

    def _raise_if_interrupted(self) -> Stop | None:
        stop = self.should_stop()
        if stop is Stop.INTERRUPT:
            saved = self._save(f"step_{self.progress.step}", "interrupt", None) if self.progress.step else None
            raise InterruptedRunError(saved)
        return stop

    def _finish(self) -> Report:
        self.reports.phase(Phase.FINALIZING)
        progress, injection = self.progress, self.adapted.injection
        report = Report(
            steps=progress.step,
            epochs=progress.epoch + (progress.batches_done > 0),
            stopped_early=progress.step < self.total_steps,
            metric=self.config.evaluation.metric,
            best=progress.best,
            base=progress.base,
            trainable_parameters=injection.trainable_parameters,
            trainable_percent=injection.trainable_percent,
            skipped_steps=progress.skipped_steps,
            train_seconds=round(progress.train_seconds, 3),
            peak_memory_bytes=_peak_memory(self.adapted.device),
            checkpoint="checkpoints/best",
            notices=self.data.notices,
        )
        (self.folder / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        self.reports.event(EventType.RESULT, report.to_dict(), "done")
        return report


def _peak_memory(device: torch.device) -> int:
    """Most memory in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _use_short_temporary_folder() -> None:
    """Loader processes pass tensors over unix sockets in the temporary folder, whose path the kernel cuts off at 107
    bytes: with a longer one (a job's workspace, say) their batches would never arrive and the run would hang.
    """
    if len(tempfile.gettempdir()) > MAX_TEMPORARY_PATH:
        tempfile.tempdir = tempfile.mkdtemp(prefix="sam3-", dir="/tmp")
        atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Loader processes ignore a terminal's Ctrl-C, which is meant for the run, and end by SIGTERM as usual."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
