"""What the service answers. Made from its OpenAPI document by `make generate`: change it there.

Fields that a newer service adds are kept as attributes. Where a text is one of several names, newer services may know
more of them.
"""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict


class AbsentPrompt(BaseModel):
    """
    How often something that no image shows was reported.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompt: str
    """
    The word that was asked.
    """
    false_alarms: int
    """
    Images on which it was reported.
    """
    images: int
    """
    Images that it was asked about.
    """


class Adapted(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    modules: int
    """
    Modules that get an adapter.
    """
    components: list[str]
    """
    Parts of the model that these are in.
    """
    trainable_parameters: int
    """
    Numbers that are trained.
    """
    total_parameters: int
    """
    Numbers of the model, with the adapters.
    """
    trainable_percent: float
    """
    Trained ones in percent of all.
    """


class Archive(BaseModel):
    """
    All files as one zip archive, byte for byte the same at every download.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    bytes: int
    """
    Size.
    """
    sha256: str
    """
    Hash of the archive, which is also its entity tag.
    """
    url: str
    """
    Where it is downloaded.
    """


class AttemptWorker(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    The worker.
    """
    device: str | None
    """
    What it computes on; null where it did not tell.
    """


class CategoryStats(BaseModel):
    """
    A category over all splits.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: int | str | None = None
    """
    In the dataset.
    """
    name: str | None = None
    """
    In the dataset.
    """
    instances: int | None = None
    """
    Annotated objects.
    """
    images: int | None = None
    """
    Images that show any.
    """


class CheckpointFile(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    name: str
    """
    In the folder of the checkpoint.
    """
    bytes: int
    """
    Size.
    """
    sha256: str
    """
    Hash of the file, which is also its entity tag.
    """
    url: str
    """
    Where it is downloaded.
    """


class Checkpoint(BaseModel):
    """
    A saved adapter: `best`, or the one of an epoch, which training can go on from.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    job_id: str
    """
    The job that saved it.
    """
    attempt: int
    """
    The attempt that saved it.
    """
    kind: str
    """
    best, epoch, or interrupt where the job was paused or moved.
    """
    epoch: int
    """
    Counts from 1.
    """
    step: int
    """
    Optimiser steps taken until then.
    """
    metric: str | None
    """
    By which checkpoints are compared.
    """
    value: float | None
    """
    Of the metric; null where it was not measured.
    """
    files: list[CheckpointFile]
    """
    Adapter and, to go on from it, the training state.
    """
    archive: Archive | None
    """
    Null for a checkpoint of an older version of this service.
    """
    created_at: AwareDatetime
    """
    When it was published.
    """


class ComparedFile(BaseModel):
    """
    COCO JSON from which pycocotools computes the same figures.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    One of the two.
    """
    name: str
    """
    truth.json, predictions.json or evaluation.json.
    """
    bytes: int
    """
    Size.
    """
    sha256: str
    """
    Hash of the file.
    """
    url: str
    """
    Where it is downloaded.
    """


class ComparedModel(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    As given: id of a model, or name of a base.
    """
    name: str
    """
    The model's when the comparison was created.
    """
    base_model: str
    """
    What it is tuned from, or is.
    """
    url: str | None
    """
    Null for a base. A model may have been deleted since.
    """


class ComparisonFailure(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    code: str
    """
    adapter_invalid, base_model_unavailable, dataset_invalid, gpu_oom, model_deleted, split_missing, storage_full,
    time_limit, worker_lost, internal.
    """
    message: str
    """
    What went wrong.
    """
    hint: str
    """
    What to do about it.
    """
    retryable: bool
    """
    Whether the same comparison may succeed later.
    """


class ComparisonProgress(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    images_done: int
    """
    Of both models together.
    """
    images_total: int
    """
    Of both models together.
    """


class ComparisonUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    The comparison.
    """
    dataset: str
    """
    The dataset.
    """
    report: str | None
    """
    A page with the figures and the worst images; null until it has succeeded.
    """


class DatasetIssue(BaseModel):
    """
    A problem of a dataset.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    severity: str | None = None
    """
    error: it cannot be trained on; warning: it can.
    """
    code: str | None = None
    """
    Stable name of the kind of problem; new ones may be added.
    """
    file: str | None = None
    """
    Path in the dataset; null for a problem of the whole.
    """
    pointer: str | None = None
    """
    JSON Pointer into the file.
    """
    image: str | None = None
    """
    Path of the image.
    """
    annotation_id: int | str | None = None
    """
    Id of the annotation.
    """
    message: str | None = None
    """
    What is wrong.
    """
    hint: str | None = None
    """
    What to do about it; may be empty.
    """
    count: int | None = None
    """
    How many problems this entry stands for.
    """


class DatasetSource(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    type: str
    """
    `file`: the archive came with the request. One of: file, upload, uri, path, demo
    """
    upload_id: str | None = None
    """
    The upload that it was made of.
    """
    uri: str | None = None
    """
    Without its query.
    """
    path: str | None = None
    """
    Where it lay on the workers.
    """


class DatasetSummary(BaseModel):
    """
    How much is in a dataset, and how much is wrong with it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    errors: int | None = None
    """
    Problems that keep it from being trained on, also those that are not listed.
    """
    warnings: int | None = None
    """
    Problems that do not, also those that are not listed.
    """
    images: int | None = None
    """
    Images of all splits.
    """
    instances: int | None = None
    """
    Annotated objects.
    """
    categories: int | None = None
    """
    Categories, by name.
    """
    images_without_annotations: int | None = None
    """
    Images that show none of them.
    """
    truncated: bool | None = None
    """
    Whether some problems are only counted.
    """


class DatasetUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    The dataset.
    """
    validation: str
    """
    The report of its check.
    """
    preview: str
    """
    Pictures of it.
    """


class DeviceFit(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    device: str
    """
    Name of the device.
    """
    memory_bytes: int
    """
    Of each GPU; of a CPU's machine.
    """
    needed_bytes: int
    """
    The peak with a margin, and what a process has beside its tensors: on each GPU; on a CPU of all processes.
    """
    gpus: int
    """
    That each of these workers has.
    """
    workers: int
    """
    Living workers with such a device.
    """
    fits: bool
    """
    Whether memory and GPUs suffice.
    """


class EpochEvaluation(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    epoch: int
    """
    Counts from 1.
    """
    step: int
    """
    Optimiser steps taken until then.
    """
    is_best: bool
    """
    Whether this is the published best checkpoint.
    """
    metrics: dict[str, float | None]
    """
    By name; null where it is not defined on this data.
    """


class EvaluationFile(BaseModel):
    """
    COCO JSON from which pycocotools computes the same figures.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    base or tuned.
    """
    name: str
    """
    truth.json, predictions.json or evaluation.json.
    """
    bytes: int
    """
    Size.
    """
    sha256: str
    """
    Hash of the file.
    """
    url: str
    """
    Where it is downloaded.
    """


class Event(BaseModel):
    """
    Something that has happened to a job.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    seq: int
    """
    Counts from 1 without gaps per job.
    """
    job_id: str
    """
    The job.
    """
    attempt: int
    """
    The attempt in which it happened; 0 before the first.
    """
    created_at: AwareDatetime
    """
    When it was written down.
    """
    type: str
    """
    status, phase, resolved, message, checkpoint, evaluation, artifact, result, error; new types may be added. An
    `artifact` is a file or folder of the run that can be fetched from now on: `data.place`, such as `report.json`.
    """
    level: str
    """
    info, warning or error.
    """
    message: str
    """
    For people.
    """
    data: dict[str, Any]
    """
    For programs; what it holds depends on the type.
    """


class Export(BaseModel):
    """
    A model in another form that is still being made.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model_id: str
    """
    The model.
    """
    format: str
    """
    peft or merged.
    """
    status: str
    """
    States of a piece of work that is no job: queued > running > succeeded or failed, or back to queued. One of: queued, running, succeeded, failed
    """
    created_at: AwareDatetime
    """
    When it was first asked for.
    """


class Failure(BaseModel):
    """
    Why something failed.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    code: str | None = None
    """
    Stable name, for programs.
    """
    message: str | None = None
    """
    What went wrong.
    """
    hint: str | None = None
    """
    What to do about it; may be empty.
    """
    retryable: bool | None = None
    """
    Whether the same may succeed later.
    """


class Figure(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    metric: str
    """
    Such as `segm_mAP` or `cgF1`.
    """
    values: list[float | None]
    """
    Of the models in their order; null where it is not defined on this data.
    """
    difference: float | None
    """
    Second - first.
    """
    better: str | None
    """
    The model that does better; null if they are equal or cannot be compared.
    """


class Image(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    width: int
    """
    Pixels.
    """
    height: int
    """
    Pixels, after the EXIF orientation.
    """
    sha256: str
    """
    Hash of the file that was sent.
    """


class InitFrom(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    checkpoint_id: str
    """
    The checkpoint whose adapter it starts from.
    """


class Instance(BaseModel):
    """
    An object that is shown in a panel.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    category: str
    """
    As the dataset has it.
    """
    score: float | None
    """
    Null for an annotated object.
    """


class JobBest(BaseModel):
    """
    The best checkpoint so far.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    checkpoint_id: str | None = None
    """
    The checkpoint.
    """
    metric: str | None = None
    """
    By which it is the best, named as in `config.evaluation.metric`, without the `val/` of its curve.
    """
    value: int | float | None = None
    """
    Of the metric; null for a job without validation.
    """
    epoch: int | None = None
    """
    After which it was saved, from 1.
    """


class JobFailure(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    code: str
    """
    config_invalid, dataset_invalid, gpu_oom, diverged, nothing_trained, worker_lost, time_limit, memory_limit,
    base_model_unavailable, storage_full, adapter_invalid, checkpoint_invalid, internal.
    """
    message: str
    """
    What went wrong.
    """
    hint: str
    """
    What to do about it; may be empty.
    """
    retryable: bool
    """
    Whether the same job may succeed if simply run again.
    """
    attempt: int
    """
    The attempt that failed.
    """


class JobLimits(BaseModel):
    """
    Bounds after which a job ends on its own.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    max_runtime_s: int | None = None
    """
    Seconds that its attempts may run, all together.
    """
    max_attempts: int | None = None
    """
    Attempts, if workers are lost or fail for a passing reason.
    """


class JobResources(BaseModel):
    """
    What a job needs of the worker that takes it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    gpus: int | None = None
    """
    GPUs of one worker, which train together: a step takes `config.training.batch_size` images on each.
    """


class JobResult(BaseModel):
    """
    What a run came to.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model_id: str | None = None
    """
    The tuned model, which may have been deleted since; null until it is made.
    """
    steps: int | None = None
    """
    Optimiser steps that were taken.
    """
    epochs: int | None = None
    """
    Epochs that were trained.
    """
    stopped_early: bool | None = None
    """
    Whether it ended before its last epoch: no epoch was better for long, or it was asked to stop.
    """
    metric: str | None = None
    """
    By which checkpoints were compared.
    """
    best: dict[str, Any] | None = None
    """
    The best checkpoint: `value`, `epoch`, `step` and its `evaluation`.
    """
    base: dict[str, Any] | None = None
    """
    Evaluation of the untuned model; null if it was not measured.
    """
    trainable_parameters: int | None = None
    """
    Numbers that were trained.
    """
    trainable_percent: int | float | None = None
    """
    The same in percent of the model's.
    """
    skipped_steps: int | None = None
    """
    Steps that were left out because their gradients were not finite.
    """
    train_seconds: int | float | None = None
    """
    Seconds of training, without validations.
    """
    peak_memory_bytes: int | None = None
    """
    Most memory on one device.
    """
    processes: int | None = None
    """
    Processes that trained together.
    """
    checkpoint: str | None = None
    """
    Where the trainer kept the best adapter in its own folder.
    """
    notices: list[str] | None = None
    """
    What should be known of the run.
    """


class JobTrainable(BaseModel):
    """
    What is trained.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    parameters: int | None = None
    """
    Numbers that are trained.
    """
    percent: int | float | None = None
    """
    The same in percent of the model's.
    """


class JobUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    The job.
    """
    html: str
    """
    The job's page, for people.
    """
    events: str
    """
    What has happened to it.
    """
    stream: str
    """
    The same as it happens.
    """
    metrics: str
    """
    Its curves.
    """
    logs: str
    """
    The trainer's log.
    """
    logs_stream: str
    """
    The log as it is written (SSE).
    """
    checkpoints: str
    """
    Its saved adapters.
    """
    attempts: str
    """
    Which workers have tried it.
    """
    evaluation: str
    """
    Base against tuned.
    """
    report: str
    """
    A page about the run; 404 until it has ended.
    """
    samples: str
    """
    Sample images.
    """
    dataset: str
    """
    Its dataset.
    """


class JobWorker(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    The worker.
    """
    device: str | None
    """
    What it computes on; null where it did not tell.
    """
    last_heartbeat_at: AwareDatetime | None
    """
    Its last sign of life for this job.
    """


class Liveness(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    status: str | None = None
    """
    Always `ok`.
    """


class Log(BaseModel):
    """
    A part of a job's log. Offsets count bytes of its UTF-8.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    """
    The job.
    """
    offset: int
    """
    Where `data` begins.
    """
    data: str
    """
    The text; bytes that are no UTF-8 are replaced.
    """
    next_offset: int
    """
    Give it as `after` to get what follows.
    """
    is_complete: bool
    """
    Nothing follows, and nothing ever will.
    """


class MaskRle(BaseModel):
    """
    A mask as COCO's compressed run-length encoding.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    size: list[int]
    """
    Height and width in pixels.
    """
    counts: str
    """
    Run lengths, compressed as pycocotools does.
    """


class Memory(BaseModel):
    """
    Bytes of one training step at its worst moment on one GPU, for a batch of `batch` there.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    peak: int
    """
    All of it together.
    """
    weights: int
    """
    The base model's weights.
    """
    adapters: int
    """
    With gradients and optimiser state.
    """
    activations: int
    """
    What the step computes and keeps until it is done.
    """
    batch: dict[str, Any]
    """
    Assumed: two categories and four objects in each image. Where a step does not fit, a run computes it in smaller
    passes.
    """


class MetricChange(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    metric: str
    """
    Such as `segm_mAP` or `cgF1`.
    """
    base: float | None
    """
    Of the base model.
    """
    tuned: float | None
    """
    Of the best checkpoint.
    """
    difference: float | None
    """
    tuned - base.
    """
    is_better: bool | None
    """
    Whether the tuned model does better; null if they are equal or cannot be compared.
    """


class MetricPoint(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    step: int
    """
    Optimiser step after which it was measured.
    """
    epoch: float | None
    """
    Epoch in which it was measured, from 1.
    """
    value: float | None
    """
    Null where it was not finite or not defined.
    """
    finite: bool
    """
    False: the value was NaN or infinite and is shown as null.
    """
    created_at: AwareDatetime
    """
    When it was written down.
    """


class Metrics(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    """
    The job.
    """
    keys: list[str]
    """
    Names of all metrics in this answer.
    """
    last_step: int | None
    """
    Give it as `after_step` to get what follows.
    """
    series: dict[str, list[MetricPoint]]
    """
    Points of each metric in the order of their steps.
    """
    constants: dict[str, float | None]
    """
    Latest values of the untuned model's metrics, `base/...`: lines to compare the others with, whatever steps were
    asked for.
    """


class Mistakes(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    missed: int
    """
    Annotated objects without a detection of score >= 0.5 that overlaps them by half.
    """
    false_alarms: int
    """
    Detections of score >= 0.5 without such an object.
    """


class ModelEvaluation(BaseModel):
    """
    One model on the validation images.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    epoch: int
    """
    After which it was measured; 0: before training.
    """
    step: int
    """
    Optimiser steps taken until then.
    """
    images: int
    """
    Validation images.
    """
    metrics: dict[str, float | None]
    """
    By name; null where it is not defined on this data.
    """
    absent_prompts: list[AbsentPrompt]
    """
    The forgetting probe, by prompt.
    """


class ModelFile(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    name: str
    """
    In the archive.
    """
    bytes: int
    """
    Size.
    """
    sha256: str
    """
    Hash of the file.
    """


class ModelUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    The model.
    """
    predict: str
    """
    Where it is asked about images.
    """
    export: str
    """
    Where it is downloaded.
    """
    job: str | None
    """
    The job that trained it; null once that was deleted.
    """


class NativeFile(BaseModel):
    """
    The same, as this service's own API has it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    status: str
    """
    Of a dataset: processing, ready, invalid or failed; else `ready`.
    """
    url: str
    """
    Where more is said about it.
    """


class CheckpointPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Checkpoint]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class Panel(BaseModel):
    """
    A JPEG picture: the bare image, or it with the annotated or found objects drawn.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    url: str
    """
    Where the picture is downloaded.
    """
    width: int
    """
    Pixels.
    """
    height: int
    """
    Pixels.
    """
    sha256: str
    """
    Hash of the picture, which is also its entity tag.
    """
    instances: list[Instance]
    """
    What is drawn; the bare image has none.
    """


class PredictionError(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    code: str
    """
    Stable name, for programs.
    """
    message: str
    """
    What went wrong.
    """
    hint: str
    """
    What to do about it.
    """
    retryable: bool
    """
    Whether the same question may succeed later.
    """


class PredictionUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    Where the answer can be asked for until it is forgotten.
    """
    model: str
    """
    The model.
    """


class PreviewImage(BaseModel):
    """
    An image of the dataset with its annotations drawn.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    split: str
    """
    The split that the image is of. One of: train, validation, test
    """
    file_name: str
    """
    Path of the image in the dataset.
    """
    width: int
    """
    Of the image itself, in pixels; the picture is smaller.
    """
    height: int
    """
    Of the image itself, in pixels.
    """
    instances: int
    """
    Annotations of the image, drawn or not.
    """
    url: str
    """
    The picture (WebP).
    """


class Progress(BaseModel):
    """
    How far it is, as its trainer last reported.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    percent: int | float | None = None
    """
    Steps that are done, in percent.
    """
    epoch: int | float | None = None
    """
    The present epoch, from 1.
    """
    epochs: int | float | None = None
    """
    Epochs of the whole training.
    """
    step: int | float | None = None
    """
    Optimiser steps that are done.
    """
    steps: int | float | None = None
    """
    Optimiser steps of the whole training.
    """
    loss: int | float | None = None
    """
    Of the last step; null before the first, and where it was not finite.
    """
    eta_s: int | float | None = None
    """
    Seconds of training that are left, by the speed of the last steps; what is evaluated meanwhile comes on top. null
    before the first step.
    """
    images_per_s: int | float | None = None
    """
    Images trained on in a second of training; null before the first step.
    """
    images_done: int | float | None = None
    """
    While the model is asked about images, as in `evaluating`: those it was asked about.
    """
    images_total: int | float | None = None
    """
    All that it will be asked about then.
    """
    updated_at: AwareDatetime | None = None
    """
    When the trainer told so.
    """


class QueueLine(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    project: str
    """
    Whose jobs these are.
    """
    priority: int
    """
    Of these jobs.
    """
    queued: int
    """
    How many wait.
    """


class QueuePosition(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    jobs_ahead: int | None
    """
    Queued jobs that will start earlier, if no others arrive; null unless this one is queued. Exact for the first 200
    jobs of a project, behind them in steps of 200, and in a queue of thousands as it was a few seconds ago.
    """
    estimated_start_at: AwareDatetime | None
    """
    To the minute, from the living workers, what they are doing and how long jobs took; null without such a basis.
    """
    reason: str | None
    """
    Why it will not start as things are: no living worker checks its datasets or has its GPUs, or the project's quota
    has no room; null otherwise.
    """


class Queue(BaseModel):
    """
    Jobs that wait for a worker, and what works them off.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    queued: int
    """
    Of all projects.
    """
    running: int
    """
    Jobs that workers have now.
    """
    workers: int
    """
    That train.
    """
    gpus: int
    """
    Of these workers together; on CPUs processes.
    """
    usual_duration_s: float | None
    """
    Mean training time of the last jobs that succeeded; null before the first.
    """
    lines: list[QueueLine]
    """
    By priority and project, highest first; with the key of a project, its own.
    """


class Readiness(BaseModel):
    """
    `failed`: nothing can be accepted. `degraded`: work is accepted and stored, but starts late or waits.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    status: str
    """
    The worst of `checks`. One of: ok, degraded, failed
    """
    checks: dict[str, str]
    """
    database, storage, broker, gpu_workers, cpu_workers, predict_workers.
    """


class Recipe(BaseModel):
    """
    How a base model is tuned: each key of `config` with meaning, default and bounds, and a job to begin with.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    base_model: str
    """
    Name of the base model.
    """
    description: str
    """
    What it is.
    """
    available: bool
    """
    Whether this server has the model's weights.
    """
    config_schema: dict[str, Any]
    """
    JSON Schema of a job's `config`.
    """
    defaults: dict[str, Any]
    """
    Every value of `config` where nothing is given.
    """
    limits: dict[str, int]
    """
    What this server takes: `max_upload_bytes`, `max_json_bytes`.
    """
    template: dict[str, Any]
    """
    A body for `POST /jobs`, complete but for the dataset's id.
    """


class Sample(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    position: int
    """
    0 is the image with most mistakes of the tuned model; of an epoch's samples, of the base.
    """
    file_name: str
    """
    As the dataset has it.
    """
    objects: int
    """
    Annotated objects.
    """
    mistakes: dict[str, Mistakes]
    """
    By model.
    """
    panels: dict[str, Panel]
    """
    Empty if the image cannot be read; without `base` if the base model was not evaluated.
    """


class SideStats(BaseModel):
    """
    A side of all images, in pixels.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    min: int | None = None
    """
    The least.
    """
    max: int | None = None
    """
    The largest.
    """
    median: int | float | None = None
    """
    The middle one.
    """


class Trial(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    """
    The job.
    """
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    values: dict[str, Any]
    """
    What it tries: fields of `config` by their path.
    """
    metric: str | None
    """
    By which checkpoints are compared; null before the first.
    """
    value: float | None
    """
    Of its best checkpoint so far.
    """
    url: str
    """
    The job.
    """


class UploadListed(BaseModel):
    """
    A file on its way, without its parts; read it for those.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    status: str
    """
    Only a `completed` upload can become a dataset; it stays so until it expires. One of: pending, completed, expired
    """
    filename: str
    """
    What the file is called.
    """
    bytes: int
    """
    Size of the whole file, which counts as stored until the upload is deleted or expires.
    """
    created_at: AwareDatetime
    """
    When it was announced.
    """
    expires_at: AwareDatetime
    """
    Each part that arrives moves it.
    """
    completed_at: AwareDatetime | None
    """
    When its parts were put together.
    """
    url: str
    """
    Where it is read, and deleted.
    """


class UploadPart(BaseModel):
    """
    A part that has arrived.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    upload_id: str
    """
    The upload.
    """
    number: int
    """
    From 1.
    """
    bytes: int
    """
    Size of the part.
    """
    sha256: str
    """
    SHA-256 of the part.
    """


class UploadUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    """
    The upload.
    """
    part: str
    """
    Replace `{number}` and PUT the part's bytes there.
    """
    complete: str
    """
    POST there once all parts have arrived.
    """


class Usage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    gpu_seconds: float
    """
    Seconds of all attempts, times `resources.gpus`; of one that goes on, up to its last heartbeat.
    """
    peak_memory_bytes: int | None
    """
    Most memory that the trainer had on one device; null until it has told.
    """


class Version(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    version: str
    """
    Version of the service.
    """
    api: str | None = None
    """
    Version of the API, which paths begin with.
    """
    base_models: list[str]
    """
    What jobs on this server may name as base_model.
    """


class Worker(BaseModel):
    """
    A worker that is alive.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    The worker.
    """
    kind: str
    """
    gpu: trains and compares; cpu: checks, exports, delivers; predict: answers predictions.
    """
    host: str
    """
    Machine that it runs on.
    """
    device: str | None
    """
    What it computes on; null where it did not tell.
    """
    memory_bytes: int | None
    """
    Of the smallest of its devices; null where it did not tell.
    """
    gpus: int
    """
    That its jobs may use; of no meaning where it does not train.
    """
    job_id: str | None
    """
    The job that it trains now.
    """
    started_at: AwareDatetime
    """
    When it was started.
    """
    last_seen_at: AwareDatetime
    """
    Its last sign of life.
    """


class Attempt(BaseModel):
    """
    One time that a worker had the job.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    """
    The job.
    """
    attempt: int
    """
    Counts from 1.
    """
    worker: AttemptWorker
    started_at: AwareDatetime
    """
    When the worker took the job.
    """
    ended_at: AwareDatetime | None
    """
    When it was given back; for a lost worker, its last sign of life.
    """
    outcome: str | None
    """
    State the job went to; null while the attempt goes on.
    """
    reason: str | None
    """
    Why it ended; null while it goes on, and where there is nothing to say.
    """
    gpu_seconds: float | None
    """
    Seconds between the two, times the job's GPUs; null while the attempt goes on.
    """


class Category(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    name: str
    """
    As the dataset has it.
    """
    ids: list[str | int]
    """
    Ids in the dataset; categories that are asked with the same text are one.
    """
    metrics: list[MetricChange]
    """
    `segm_mAP` and `bbox_mAP` of this category alone.
    """


class ComparedCategory(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    name: str
    """
    As the dataset has it.
    """
    ids: list[str | int]
    """
    Ids in the dataset; categories that both models are asked for with the same text are one.
    """
    metrics: list[Figure]
    """
    `segm_mAP` and `bbox_mAP` of this category alone.
    """


class ComparisonResult(BaseModel):
    """
    Both models on the same images, each asked with its own prompts. Null figures are explained in `notes`.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    split: str
    """
    Images that were measured on. One of: validation, train
    """
    images: int
    """
    How many.
    """
    better: str | None
    """
    The model with the better `metric` of the comparison; null if they are equal or cannot be compared.
    """
    metrics: list[Figure]
    """
    Every metric.
    """
    per_category: list[ComparedCategory]
    """
    In the order of the dataset.
    """
    absent_prompts: list[list[AbsentPrompt]]
    """
    The forgetting probe of the models in their order, by prompt.
    """
    notes: list[str]
    """
    Why figures are null.
    """
    files: list[ComparedFile]
    """
    What the figures were computed from.
    """


class DatasetPreview(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[PreviewImage]
    """
    Pictures, spread over the images of each split.
    """


class Dataset(BaseModel):
    """
    An uploaded dataset. `ready` ones can be trained on; `invalid` ones have a report that says why not.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    name: str
    """
    For people.
    """
    project: str
    """
    Whose it is; quotas count it there.
    """
    status: str
    """
    One of: processing, ready, invalid, failed
    """
    filename: str
    """
    What its archive was called.
    """
    source: DatasetSource
    bytes: int | None
    """
    Size of the archive; null until it has been fetched.
    """
    sha256: str | None
    """
    Of the archive. Datasets of the same bytes share one stored archive, and the report of a ready one.
    """
    summary: DatasetSummary | None
    """
    Counts of the validation report, once there is one.
    """
    error: Failure | None
    """
    Why the fetching or the check itself failed.
    """
    created_at: AwareDatetime
    """
    When it was created.
    """
    finished_at: AwareDatetime | None
    """
    When the check ended.
    """
    urls: DatasetUrls


class DatasetStats(BaseModel):
    """
    Numbers of a dataset over all its splits.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    per_category: list[CategoryStats] | None = None
    """
    The first categories.
    """
    image_sizes: dict[str, SideStats] | None = None
    """
    Empty where no image has a known size.
    """
    duplicates: int | None = None
    """
    Images whose content an earlier image of the same split has.
    """


class DatasetValidation(BaseModel):
    """
    The report of a dataset's check: every problem that was found, with where it is and what to do.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    dataset_id: str
    """
    The dataset.
    """
    status: str
    """
    One of: processing, ready, invalid, failed
    """
    summary: DatasetSummary | None = None
    """
    How much there is and was found; null while there is no report.
    """
    issues: list[DatasetIssue]
    """
    Problems, errors first; of each kind as many as are worth reading, then how many more there are.
    """
    stats: DatasetStats | None = None
    """
    Numbers of the dataset; null while there is no report.
    """


class Detection(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    box: list[float]
    """
    x1, y1, x2, y2 in pixels of the upright image.
    """
    score: float
    """
    From 0 to 1.
    """
    segmentation: MaskRle | None
    """
    Its mask.
    """


class Estimate(BaseModel):
    """
    What a job would take. `pending`: a worker is still working out what is null; ask again with the same body.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    The same for all that ask for the same.
    """
    status: str
    """
    Whether the numbers are there. One of: ready, pending
    """
    resolved: dict[str, Any]
    """
    As of a job: every value as used.
    """
    adapted: Adapted | None
    """
    What would be trained.
    """
    memory: Memory | None
    """
    What a training step would need.
    """
    devices: list[DeviceFit]
    """
    Of the living workers that tell; empty while pending.
    """
    fits: bool | None
    """
    Whether it fits on any of them; null where none is known.
    """
    expected_seconds: float | None
    """
    Of training and validation, from the GPU time that jobs on the same base took for each image and epoch; as if
    several GPUs divided it evenly.
    """
    expected_seconds_reason: str | None
    """
    Why it is null.
    """


class Evaluation(BaseModel):
    """
    Base against tuned on the validation images. Null figures are explained in `notes`.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    """
    The job.
    """
    status: str
    """
    `pending`: nothing was measured yet; `running`: more may come; `complete`: the job has ended. One of: pending, running, complete
    """
    metric: str
    """
    The metric by which the best checkpoint is chosen.
    """
    base: ModelEvaluation | None
    """
    The untuned base model; null if it was not measured.
    """
    tuned: ModelEvaluation | None
    """
    The best checkpoint.
    """
    metrics: list[MetricChange]
    """
    Every metric of both models.
    """
    per_category: list[Category]
    """
    In the order of the dataset.
    """
    notes: list[str]
    """
    Why figures are null.
    """
    history: list[EpochEvaluation]
    """
    Every validation, by epoch.
    """
    files: list[EvaluationFile]
    """
    What the figures were computed from.
    """


class EventPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Event]
    """
    The events, in the order that was asked for.
    """
    first_seq: int | None
    """
    Of the first event in `data`; null if there is none.
    """
    last_seq: int
    """
    Of the last event in `data`, else `after`. In ascending order give it as `after`, in descending as `before`,
    to get what follows.
    """
    has_more: bool
    """
    Whether more follow in this order.
    """


class File(BaseModel):
    """
    A dataset (`ds_...`), the metrics of a job that has ended (`metrics_job_...`), or a tuned model (`model_...`).
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque; of a dataset, the same as in `/datasets`.
    """
    bytes: int
    """
    Size of its content; 0 until a dataset has been fetched from where it comes from.
    """
    created_at: int
    """
    In seconds since 1970.
    """
    expires_at: int | None = None
    """
    Always null: a file stays until it is deleted, or its operator's time for unused datasets has passed.
    """
    filename: str
    """
    What it is called.
    """
    purpose: str
    """
    fine-tune: a dataset; fine-tune-results: what a job left behind. One of: fine-tune, fine-tune-results
    """
    status: str
    """
    Of a dataset: `processed` can be trained on, `error` has failed its check, `uploaded` is being checked. One of: uploaded, processed, error
    """
    status_details: str | None
    """
    Why it is in `error`: the first problems. `native.url` leads to all of them.
    """
    native: NativeFile


class Job(BaseModel):
    """
    A training job.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    name: str
    """
    For people.
    """
    project: str
    """
    Whom it is for.
    """
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    phase: str | None
    """
    What a running job is doing; new phases may be added.
    """
    status_reason: str | None
    """
    Why it is in this state, or what was asked of it; null where there is nothing to say.
    """
    is_terminal: bool
    """
    Whether it has ended.
    """
    allowed_actions: list[str]
    """
    What is possible in this state, besides PATCH and clone, which always are.
    """
    base_model: str
    """
    The model that is adapted.
    """
    init_from: InitFrom | None
    """
    The adapter that it starts from; null: the bare base.
    """
    retry_of: str | None
    """
    The job that it is a retry of.
    """
    resumes_from: str | None
    """
    Job whose last good checkpoint a retry goes on from.
    """
    dataset_id: str
    """
    Dataset that it trains on.
    """
    validation_dataset_id: str | None
    """
    Dataset of its validation images; null: that which it trains on.
    """
    sweep_id: str | None
    """
    The sweep that it belongs to.
    """
    trial: dict[str, Any] | None
    """
    The values that it tries there, by path in `config`.
    """
    config: dict[str, Any]
    """
    As submitted.
    """
    resolved: dict[str, Any]
    """
    `config` with every value as used, `resources` with the images of a step on all GPUs, the dataset's hash, and
    under `run` what the trainer reported.
    """
    seed: int
    """
    Seed of everything random.
    """
    resources: JobResources
    priority: int
    """
    Higher runs earlier.
    """
    limits: JobLimits
    tags: list[str]
    """
    Labels to filter lists by.
    """
    metadata: dict[str, str]
    """
    Texts that are stored with it.
    """
    queue: QueuePosition
    progress: Progress | None
    """
    How far it is; null until the trainer has told.
    """
    attempt: int
    """
    Times a worker has started it.
    """
    worker: JobWorker | None
    """
    The worker that has it now.
    """
    best: JobBest | None
    """
    The best checkpoint so far.
    """
    result: JobResult | None
    """
    What the run came to; null unless it has succeeded.
    """
    error: JobFailure | None
    """
    Why it failed; null otherwise.
    """
    usage: Usage
    trainable: JobTrainable | None
    """
    What is trained; null until the trainer has told.
    """
    created_at: AwareDatetime
    """
    When it was created.
    """
    queued_at: AwareDatetime | None
    """
    When it last came into the queue; null while its datasets are being checked.
    """
    started_at: AwareDatetime | None
    """
    When a worker first took it.
    """
    finished_at: AwareDatetime | None
    """
    When it ended.
    """
    urls: JobUrls


class Model(BaseModel):
    """
    The best adapter of a job that succeeded, ready to be asked and to be taken away.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    name: str
    """
    The job's.
    """
    project: str
    """
    Whose it is.
    """
    job_id: str | None
    """
    Null once the job was deleted.
    """
    base_model: str
    """
    The model that was tuned.
    """
    epoch: int
    """
    Training epoch of its checkpoint.
    """
    step: int
    """
    Optimiser steps taken until then.
    """
    metric: str | None
    """
    By which it was the best; null for a job without validation.
    """
    value: float | None
    """
    Of `metric` on the validation images.
    """
    files: list[ModelFile]
    """
    The adapter, as the export in format `native` holds it.
    """
    archive: Archive | None
    """
    The export in format `native`.
    """
    created_at: AwareDatetime
    """
    When its job succeeded.
    """
    created: int
    """
    The same in seconds since 1970, as OpenAI's clients read it.
    """
    owned_by: str
    """
    Its project.
    """
    urls: ModelUrls


class AttemptPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Attempt]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class DatasetPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Dataset]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class JobPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Job]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class ModelPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Model]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class UploadListedPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[UploadListed]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class RecipeList(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Recipe]
    """
    One recipe for each base model.
    """


class SampleList(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Sample]
    """
    Worst first; of the end of the job, empty until it has succeeded.
    """
    created_at: AwareDatetime | None
    """
    Null while there are none.
    """
    epoch: int | None
    """
    What was asked for; null for the end of the job.
    """
    epochs: list[int]
    """
    Of which there are samples: of every validation, in a long training of some twenty.
    """


class Sweep(BaseModel):
    """
    A sweep, and how its jobs stand.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    name: str
    """
    For people.
    """
    project: str
    """
    Whom its jobs are for.
    """
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    is_terminal: bool
    """
    Whether all its jobs have ended.
    """
    counts: dict[str, int]
    """
    Jobs by status.
    """
    best: Trial | None
    """
    The job with the highest metric so far.
    """
    trials: list[Trial]
    """
    Its jobs, in the order of their creation.
    """
    request: dict[str, Any]
    """
    As submitted.
    """
    created_at: AwareDatetime
    """
    When it was created.
    """
    url: str
    """
    The sweep.
    """


class Upload(BaseModel):
    """
    A file on its way. Send again what is not in `parts`, in any order, then complete it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    status: str
    """
    Only a `completed` upload can become a dataset; it stays so until it expires. One of: pending, completed, expired
    """
    filename: str
    """
    What the file is called.
    """
    bytes: int
    """
    Size of the whole file.
    """
    sha256: str | None
    """
    As announced; of the whole file once it is completed.
    """
    part_bytes: int
    """
    Size of every part but the last.
    """
    part_count: int
    """
    Parts of the whole file.
    """
    parts: list[UploadPart]
    """
    The parts that have arrived, in order; empty once the upload is completed.
    """
    created_at: AwareDatetime
    """
    When it was announced.
    """
    expires_at: AwareDatetime
    """
    Each part that arrives moves it.
    """
    completed_at: AwareDatetime | None
    """
    When its parts were put together; null until then.
    """
    urls: UploadUrls


class WorkerList(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Worker]
    """
    Living workers, the oldest first.
    """


class Answer(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    prompt: str
    """
    `visual` where boxes were asked alone.
    """
    presence: float
    """
    Probability that the image shows it at all.
    """
    detections: list[Detection]
    """
    Best first, at most 100.
    """


class Comparison(BaseModel):
    """
    Two models measured on one dataset.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    name: str
    """
    For people.
    """
    project: str
    """
    Whose it is.
    """
    status: str
    """
    States of a piece of work that is no job: queued > running > succeeded or failed, or back to queued. One of: queued, running, succeeded, failed
    """
    is_terminal: bool
    """
    Whether it has ended.
    """
    dataset_id: str
    """
    The dataset.
    """
    models: list[ComparedModel]
    """
    The second is judged by the first.
    """
    split: str | None
    """
    As asked for.
    """
    max_images: int | None
    """
    As asked for.
    """
    metric: str
    """
    What decides which is better.
    """
    progress: ComparisonProgress | None
    """
    Null until the first image was measured, and while no worker is at it.
    """
    result: ComparisonResult | None
    """
    Null until it has succeeded.
    """
    error: ComparisonFailure | None
    """
    Why it failed.
    """
    created_at: AwareDatetime
    """
    When it was asked for.
    """
    finished_at: AwareDatetime | None
    """
    When it succeeded or failed.
    """
    urls: ComparisonUrls


class ComparisonPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Comparison]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class SweepPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Sweep]
    """
    The items of this page, in the order that was asked for.
    """
    first_id: str | None
    """
    Give it as `before` to get the page before.
    """
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool
    """
    Whether more follow: after this page, or before it where `before` was given.
    """


class Prediction(BaseModel):
    """
    A question to a model about one image, and the answer to each prompt.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    Opaque.
    """
    model_id: str
    """
    The model that was asked.
    """
    status: str
    """
    States of a piece of work that is no job: queued > running > succeeded or failed, or back to queued. One of: queued, running, succeeded, failed
    """
    image: Image
    prompts: list[str]
    """
    As asked; empty: the boxes alone, or all that the model was tuned on.
    """
    boxes: list[list[float]]
    """
    As asked: x1, y1, x2, y2 in pixels.
    """
    min_score: float
    """
    Detections below were left out.
    """
    untuned: bool
    """
    Whether the model's base was asked instead.
    """
    results: list[Answer] | None
    """
    One for each prompt; null until it has succeeded.
    """
    error: PredictionError | None
    """
    Why it failed.
    """
    created_at: AwareDatetime
    """
    When it was asked.
    """
    finished_at: AwareDatetime | None
    """
    When it was answered or failed.
    """
    urls: PredictionUrls
