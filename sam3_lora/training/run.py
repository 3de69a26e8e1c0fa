"""The training run: epochs of steps, validation, checkpoints, the best one, the report.

The library reports events and asks `should_stop()`; it never talks to a database or a queue.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from sam3_lora import distributed
from sam3_lora.config import RunConfig
from sam3_lora.errors import DivergedError, NothingTrainedError, Sam3LoraError
from sam3_lora.evaluation.coco_metrics import Evaluation, evaluate
from sam3_lora.evaluation.followed import FollowedImages
from sam3_lora.evaluation.predict import Predictor
from sam3_lora.events import EventType, Level, Phase, Reporter
from sam3_lora.lora.adapter import load_weights
from sam3_lora.lora.inject import adapter_parameters
from sam3_lora.lora.layers import adapters_off
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.upstream import set_activation_checkpointing
from sam3_lora.training import checkpoint
from sam3_lora.training.absent import find_absent_words
from sam3_lora.training.batches import Batches
from sam3_lora.training.estimate import RECOMPUTED, choose_recomputation
from sam3_lora.training.optim import build_optimizer, learning_rate, set_learning_rate
from sam3_lora.training.progress import Progress, Report
from sam3_lora.training.reporting import RunReporter
from sam3_lora.training.seed import deterministic_algorithms, seed_everything
from sam3_lora.training.setup import (
    Adapted,
    Data,
    choose_resolution,
    open_feature_store,
    prepare_data,
    prepare_model,
    unwritable,
)
from sam3_lora.training.step import Stepper
from sam3_lora.training.trackers import Ended

log = logging.getLogger(__name__)


class Stop(StrEnum):
    """What `should_stop()` may ask for."""

    FINISH = "finish"  # end early and well: evaluate, save, succeed
    INTERRUPT = "interrupt"  # save what `--resume` needs and leave at once


REPORT_FILE, PAGE_FILE, SAMPLES, EPOCH_SAMPLES = "report.json", "report.html", "samples", "epoch_samples"
FOLLOWED_IMAGES, DRAWN_EPOCHS = 6, 20  # at most: a picture takes 30 kB, and an image has four
ABSENT_WORDS = "absent_words.json"
LATEST, TUNED, REPLACED = ".latest", "tuned", ".replaced"  # exports: of the last validation, the best, the one before
NO_BFLOAT16 = "this {} has no instructions for bfloat16, which would be many times slower: training in float32"
UNDEFINED = "evaluation.metric {} is not defined on this data: the last checkpoint counts as the best"
STOPS = (None, Stop.FINISH, Stop.INTERRUPT)  # the later outranks the earlier


class InterruptedRunError(Sam3LoraError):
    """The run was interrupted; `checkpoint` is where it goes on from (None: nothing was trained yet)."""

    code = "interrupted"
    retryable = True

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__("the run was interrupted", hint="resume it from the checkpoint")
        self.checkpoint = checkpoint


def train(
    config: RunConfig,
    *,
    reporter: Reporter = lambda event: None,
    should_stop: Callable[[], Stop | None] = lambda: None,
    resume: Path | None = None,
) -> Report:
    """Run a training from configuration to report; under `torchrun`, together with its other processes.

    Args:
        reporter: receives every event, in order, in this thread (of the leading process only).
        should_stop: asked between steps and between evaluated images.
        resume: a checkpoint folder or a run directory to go on from.

    Raises:
        InterruptedRunError: after saving, where `should_stop` asked for it.
        Sam3LoraError: any other named failure; the last good checkpoint is intact.
    """
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    with distributed.join() as world, deterministic_algorithms(config.training.deterministic):
        if world.leads:
            _make_folder(config.output.dir)
            output = config.output
            reports = RunReporter(
                reporter,
                output.dir,
                tensorboard=output.tensorboard,
                trackers=output.trackers,
                project=output.project,
                run_name=output.run_name,
            )
        else:
            reports = RunReporter(lambda event: None, None)
        ended = Ended.FAILED
        try:
            report = _Run(config, reports, should_stop, world).run(resume)
            ended = Ended.FINISHED
            return report
        except InterruptedRunError:
            ended = Ended.INTERRUPTED
            raise
        finally:
            reports.close(ended)


class _Run:
    """State and steps of one run, in the order they happen."""

    def __init__(
        self,
        config: RunConfig,
        reports: RunReporter,
        should_stop: Callable[[], Stop | None],
        world: distributed.World,
    ) -> None:
        self.config, self.reports, self.should_stop, self.world = config, reports, should_stop, world
        self.folder = config.output.dir
        self.checkpoints = self.folder / "checkpoints"
        self.evaluations = self.folder / "evaluation"
        self.progress = Progress()
        self.tracked_before: dict[str, str] = {}  # by trackers, the run that this one goes on from
        self.finishing = False
        self.data: Data
        self.followed: FollowedImages
        self.batches: Batches
        self.adapted: Adapted
        self.encoders: Encoders
        self.stepper: Stepper

    # --- set-up -----------------------------------------------------------------------------------------

    def run(self, resume: Path | None) -> Report:
        self.reports.phase(Phase.STARTING)
        seed_everything(self.config.training.seed)
        if self.world.leads:
            self.checkpoints.mkdir(exist_ok=True)
            checkpoint.recover(self.checkpoints)
            if resume is None:
                shutil.rmtree(self.folder / EPOCH_SAMPLES, ignore_errors=True)  # of a run that was here before
        resolution = choose_resolution(self.config.model, self.config.dataset.resolution)
        self.data = prepare_data(self.config, resolution)
        self.followed = FollowedImages(
            self.data.validation_folder,
            base=self.evaluations / "base",
            limit=min(self.config.evaluation.sample_images, FOLLOWED_IMAGES),
            transparent_color=self.config.dataset.transparent_color,
        )
        self.reports.phase(Phase.LOADING_MODEL)
        self.adapted = prepare_model(self.config, resolution, self.data.concepts, self.world.local_rank)
        if self.config.training.use_amp and self.adapted.amp_dtype is None:
            self.reports.message(NO_BFLOAT16.format(self.adapted.device.type), Level.WARNING)
        self._choose_recomputation()
        store = open_feature_store(self.config, self.adapted, self.data)
        self.encoders = Encoders(self.adapted.model, store)
        self.data.train.features = store if self.data.train.views_repeat else None
        self._build_stepper()
        if resume is not None:
            self._restore(self._find_resumable(resume))
        self._count_steps()
        self._tell_resolved(resolution)
        for notice in self.data.notices:
            self.reports.message(notice, Level.WARNING)
        if resume is not None:
            self.reports.message(f"resumed after step {self.progress.step} of {self.total_steps}")
        with adapters_off(self.adapted.model):
            if resume is None and self.config.evaluation.baseline and self.data.validation is not None:
                self.progress.base = self._evaluate("base").to_dict()
            if self.config.dataset.generic_negatives > 0:
                self._find_absent_words()
        self._train_epochs()
        return self._finish()

    def _choose_recomputation(self) -> None:
        recomputed = choose_recomputation(self.config, self.adapted, self.data)
        if recomputed is not None:
            set_activation_checkpointing(self.adapted.model, recomputed)
            self.reports.message(f"activations recomputed in backward: {RECOMPUTED[recomputed]}")

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
            world=self.world,
            encoders=self.encoders,
        )

    def _count_steps(self) -> None:
        """Steps of the run in all, from where it stands: another number of processes takes another number of steps."""
        training, progress = self.config.training, self.progress
        self.batches = Batches(self.data.train, training, self.world, masks=training.enable_segmentation)
        self.total_steps = progress.step + self.batches.steps_left(progress.epoch, progress.images_done)
        if training.max_steps is not None:
            self.total_steps = min(self.total_steps, training.max_steps)
        progress.ended &= progress.step >= self.total_steps  # more epochs may be asked for now
        self.reports.begin(
            epoch=progress.epoch + 1, epochs=training.max_epochs, step=progress.step, steps=self.total_steps
        )

    def _tell_resolved(self, resolution: int) -> None:
        values = self.config.model_dump(mode="json")
        values["dataset"]["resolution"] = resolution
        values["training"]["device"] = self.adapted.device.type
        values["training"]["use_amp"] = self.adapted.amp_dtype is not None
        if self.world.leads:
            (self.folder / "config.resolved.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        self.reports.track(values, self.tracked_before)
        injection = self.adapted.injection
        self.reports.event(
            EventType.RESOLVED,
            {"config": values, "base_fingerprint": self.adapted.info.base_fingerprint, **injection.to_dict()},
            f"{len(injection.modules)} modules adapted, {injection.trainable_parameters:,} trainable parameters "
            f"({injection.trainable_percent:.2f} %), {len(self.data.train)} training images, "
            f"{self.total_steps} steps on {self.adapted.device}"
            + (f", {self.world.size} processes" if self.world.size > 1 else ""),
        )

    def _find_resumable(self, path: Path) -> Path:
        if self.world.leads:
            checkpoint.recover(path / "checkpoints")
        self.world.wait()
        return checkpoint.find_resumable(path)

    def _find_absent_words(self) -> None:
        """What the base is sure not to see, kept in the run directory for when the run is resumed."""
        file = self.folder / ABSENT_WORDS
        kept = None
        if self.world.leads and self.progress.step > 0 and file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
        kept = self.world.gather(kept)[0]  # the leader's: other machines may not have the file
        if kept is not None:
            self.data.train.absent_words = {int(position): tuple(words) for position, words in kept.items()}
            return
        self.reports.phase(Phase.EVALUATING)
        self.reports.message("asking the base model what is not in the training images")
        self.data.train.absent_words = find_absent_words(
            self._predictor(),
            self.data.train,
            seed=self.config.training.seed,
            world=self.world,
            on_image=self._after_image,
        )
        if self.world.leads:
            file.write_text(json.dumps(self.data.train.absent_words), encoding="utf-8")

    def _predictor(self) -> Predictor:
        return Predictor(
            self.adapted.model,
            resolution=self.adapted.info.resolution,
            amp_dtype=self.adapted.amp_dtype,
            masks=self.config.training.enable_segmentation,
            encoders=self.encoders,
        )

    def _restore(self, folder: Path) -> None:
        state = checkpoint.read_state(folder, self.config, self.adapted.info.base_fingerprint)
        load_weights(self.adapted.model, folder)
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.reports.points = state.get("points", [])
        self.tracked_before = state.get("tracked", {})

    # --- training ---------------------------------------------------------------------------------------

    def _train_epochs(self) -> None:
        self.reports.phase(Phase.TRAINING)
        where = self.progress.epoch, self.progress.images_done
        pin_memory = self.adapted.device.type == "cuda"
        with closing(self.batches.load(*where, pin_memory=pin_memory)) as batches:  # ends the loaders in any case
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
        training, progress, images = self.config.training, self.progress, len(self.data.train)
        while progress.images_done < images and progress.step < self.total_steps:
            if self._asked_to_finish():
                return
            count = min(training.gradient_accumulation_steps, self.batches.left(progress.images_done))
            began = time.monotonic()
            group = [next(batches) for _ in range(count)]
            rate = learning_rate(progress.step, self.total_steps, training)
            set_learning_rate(self.stepper.optimizer, rate)
            seed_everything(training.seed, progress.step, self.world.rank)
            result = self.stepper(group)
            done = min(images, progress.images_done + count * self.batches.size)
            step_images, progress.images_done = done - progress.images_done, done
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
                images=step_images,
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

    # --- end of an epoch --------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Validate, keep the best, save what `--resume` needs, and decide whether there is another epoch."""
        progress, patience = self.progress, self.config.evaluation.early_stopping_patience
        number = progress.epoch + 1
        last = self.finishing or progress.step >= self.total_steps
        value: float | None = None
        if self.data.validation is not None and (last or number % self.config.evaluation.every_epochs == 0):
            evaluation = self._evaluate("val")
            self._draw_followed(number, last=last)
            value = evaluation.metrics[self.config.evaluation.metric]
            if value is None and progress.best is None:
                self.reports.message(UNDEFINED.format(self.config.evaluation.metric), Level.WARNING)
            self._keep_if_best(value, evaluation)
        elif self.data.validation is None and last:
            self._keep_if_best(None, None)
        if patience is not None and progress.validations_without_gain >= patience and not last:
            self.reports.message(f"stopped early: {patience} validations without a better metric")
            last = True
        if progress.images_done >= len(self.data.train):
            progress.epoch, progress.images_done = number, 0
        progress.ended = last
        self._save(f"epoch_{number}", "epoch", value)
        self._prune(self.config.training.keep_checkpoints)
        if not last:
            self.reports.phase(Phase.TRAINING)

    def _evaluate(self, name: str) -> Evaluation:
        self.reports.phase(Phase.EVALUATING)
        assert self.data.validation is not None  # callers ask only where there is one
        evaluation = evaluate(
            self._predictor(),
            self.data.validation,
            self.data.validation_folder,
            self.data.concepts,
            self.config.dataset,
            self.config.evaluation,
            export=self.evaluations / ("base" if name == "base" else LATEST),
            on_image=self._after_image,
            world=self.world,
        )
        epoch = self.progress.epoch + (name == "val")
        self.reports.metrics(
            {f"{name}/{key}": value for key, value in evaluation.metrics.items()}, step=self.progress.step, epoch=epoch
        )
        metric = self.config.evaluation.metric
        value = evaluation.metrics[metric]
        self.reports.event(
            EventType.EVALUATION,
            {
                "model": "base" if name == "base" else "tuned",
                "epoch": epoch,
                "step": self.progress.step,
                **evaluation.to_dict(),
            },
            f"{name} after {self.progress.step} steps: {metric} {'undefined' if value is None else f'{value:.3f}'}",
        )
        if name == "base":
            self._tell_complete(self.evaluations / "base")
        return evaluation

    def _draw_followed(self, epoch: int, *, last: bool) -> None:
        """Draw what the model finds now in the followed images, for people. Training goes on without it."""
        settings = self.config.evaluation
        validations = math.ceil(self.config.training.max_epochs / settings.every_epochs)
        is_turn = last or epoch // settings.every_epochs % math.ceil(validations / DRAWN_EPOCHS) == 0
        if not (self.world.leads and is_turn and settings.sample_images):
            return
        try:
            output = self.folder / EPOCH_SAMPLES / str(epoch)
            self.followed.draw(self.evaluations / LATEST, output)
            self._tell_complete(output)
        except (OSError, ValueError, KeyError) as error:
            self.reports.message(f"no samples of epoch {epoch}: {error}", Level.WARNING)

    def _keep_if_best(self, value: float | None, evaluation: Evaluation | None) -> None:
        best = self.progress.best
        # Where the metric is not defined on the data there is nothing to choose by: the last checkpoint counts.
        if best is not None and best["value"] is not None and (value is None or value <= best["value"]):
            self.progress.validations_without_gain += 1
            return
        self.progress.validations_without_gain = 0
        if evaluation is not None:
            self._keep_export()
        self.progress.best = {
            "value": value,
            "epoch": self.progress.epoch + 1,
            "step": self.progress.step,
            "evaluation": None if evaluation is None else evaluation.to_dict(),
        }
        self._save("best", "best", value)

    def _keep_export(self) -> None:
        """Exports stay of the best alone; whoever reads the one before sees all of it or none."""
        if self.world.leads:
            replaced, kept = self.evaluations / REPLACED, self.evaluations / TUNED
            shutil.rmtree(replaced, ignore_errors=True)
            if kept.exists():
                kept.rename(replaced)
            (self.evaluations / LATEST).rename(kept)
            shutil.rmtree(replaced, ignore_errors=True)
        self._tell_complete(self.evaluations / TUNED)

    def _tell_complete(self, path: Path) -> None:
        self.reports.event(EventType.ARTIFACT, {"place": path.relative_to(self.folder).as_posix()})

    def _save(self, name: str, kind: str, value: float | None) -> Path:
        self.reports.phase(Phase.SAVING_CHECKPOINT)
        progress = self.progress
        summary = {
            "kind": kind,
            "epoch": progress.epoch + (progress.images_done > 0),  # 1-based
            "step": progress.step,
            "metric": self.config.evaluation.metric,
            "value": value,
        }
        folder = self.checkpoints / name
        if self.world.leads:
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
            "points": self.reports.points,
            "tracked": self.reports.tracked(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
        }

    def _prune(self, keep: int) -> None:
        if not self.world.leads:
            return
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
            elif limit is not None and self.world.highest(self.progress.train_seconds >= limit):
                self.reports.message(f"training.max_seconds ({limit:g}) is reached: evaluating and saving")
                self.finishing = True
        return self.finishing

    def _after_image(self, done: int, total: int) -> None:
        self.reports.asked(done, total)
        self._raise_if_interrupted()

    def _raise_if_interrupted(self) -> Stop | None:
        """What was asked of any process; all of them come here equally often, so that all leave together."""
        stop = STOPS[self.world.highest(STOPS.index(self.should_stop()))]
        if stop is Stop.INTERRUPT:
            saved = self._save(f"step_{self.progress.step}", "interrupt", None) if self.progress.step else None
            raise InterruptedRunError(saved)
        return stop

    def _finish(self) -> Report:
        self.reports.phase(Phase.FINALIZING)
        progress, injection = self.progress, self.adapted.injection
        report = Report(
            steps=progress.step,
            epochs=progress.epoch + (progress.images_done > 0),
            stopped_early=progress.step < self.total_steps,
            metric=self.config.evaluation.metric,
            best=progress.best,
            base=progress.base,
            trainable_parameters=injection.trainable_parameters,
            trainable_percent=injection.trainable_percent,
            skipped_steps=progress.skipped_steps,
            train_seconds=round(progress.train_seconds, 3),
            peak_memory_bytes=_peak_memory(self.adapted.device),
            processes=self.world.size,
            checkpoint="checkpoints/best",
            notices=self.data.notices,
        )
        if self.world.leads:
            (self.folder / REPORT_FILE).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
            self._tell_complete(self.folder / REPORT_FILE)
            self._write_page(report)
        self.reports.event(EventType.RESULT, report.to_dict(), "done")
        return report

    def _write_page(self, report: Report) -> None:
        """The report's page and sample images, for people. The run has succeeded without them."""
        shutil.rmtree(self.evaluations / LATEST, ignore_errors=True)
        if report.best is None or report.best["evaluation"] is None:
            return
        facts = {
            "Base model": self.config.model.base,
            "Trained parameters": f"{report.trainable_parameters:,} ({report.trainable_percent:.2f} %)",
            "Training": f"{report.steps} steps in {report.train_seconds:.0f} s on {self.adapted.device}",
            "Best after": f"step {report.best['step']} (epoch {report.best['epoch']})",
            "Images": f"{len(self.data.train)} for training, {report.best['evaluation']['images']} held out",
        }
        try:
            from sam3_lora.evaluation.report import write_report  # matplotlib: a second

            write_report(
                self.evaluations,
                self.folder / PAGE_FILE,
                images=self.data.validation_folder,
                title=f"Tuned {self.config.model.base}",
                facts=facts,
                curves=self.reports.points,
                metric=report.metric,
                worst=self.config.evaluation.sample_images,
                transparent_color=self.config.dataset.transparent_color,
                samples=self.folder / SAMPLES,
            )
            self._tell_complete(self.folder / PAGE_FILE)
            self._tell_complete(self.folder / SAMPLES)
        except (ImportError, OSError, ValueError) as error:
            self.reports.message(f"no report.html: {error}", Level.WARNING)


def _make_folder(folder: Path) -> None:
    """Make the run directory and see that it can be written to, before minutes are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable("dir", folder, error) from error


def _peak_memory(device: torch.device) -> int:
    """Most memory in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
