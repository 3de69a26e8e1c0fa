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
    components: list[str]
    trainable_parameters: int
    total_parameters: int
    trainable_percent: float


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
    device: str | None


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


class DatasetSource(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    type: str
    """
    `file`: the archive came with the request. One of: file, upload, uri, path, demo
    """
    upload_id: str | None = None
    uri: str | None = None
    """
    Without its query.
    """
    path: str | None = None


class DatasetUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    validation: str
    preview: str


class DatasetValidation(BaseModel):
    """
    The report of a dataset's check: every problem that was found, with where it is and what to do.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    dataset_id: str
    status: str
    """
    One of: processing, ready, invalid, failed
    """
    summary: dict[str, Any] | None = None
    issues: list[dict[str, Any]]
    stats: dict[str, Any] | None = None


class DeviceFit(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    device: str
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
    seq: int
    """
    Counts from 1 without gaps per job.
    """
    job_id: str
    attempt: int
    """
    The attempt in which it happened; 0 before the first.
    """
    created_at: AwareDatetime
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
    hint: str
    retryable: bool
    attempt: int


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


class JobUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    html: str
    """
    The job's page, for people.
    """
    events: str
    stream: str
    """
    Events as they come (SSE).
    """
    metrics: str
    logs: str
    logs_stream: str
    """
    The log as it is written (SSE).
    """
    checkpoints: str
    attempts: str
    evaluation: str
    report: str
    samples: str
    dataset: str


class JobWorker(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    device: str | None
    last_heartbeat_at: AwareDatetime | None


class Liveness(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    status: str | None = None


class Log(BaseModel):
    """
    A part of a job's log. Offsets count bytes of its UTF-8.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    offset: int
    """
    Where `data` begins.
    """
    data: str
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
    weights: int
    adapters: int
    """
    With gradients and optimiser state.
    """
    activations: int
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
    epoch: float | None
    value: float | None
    finite: bool
    """
    False: the value was NaN or infinite and is shown as null.
    """
    created_at: AwareDatetime


class Metrics(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    keys: list[str]
    """
    Names of all metrics in this answer.
    """
    last_step: int | None
    """
    Give it as `after_step` to get what follows.
    """
    series: dict[str, list[MetricPoint]]
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
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


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
    One of: train, validation, test
    """
    file_name: str
    width: int
    """
    Of the image itself, in pixels; the picture is smaller.
    """
    height: int
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
    Of its steps.
    """
    epoch: int | float | None = None
    """
    Counts from 1.
    """
    epochs: int | float | None = None
    step: int | float | None = None
    steps: int | float | None = None
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


class QueueLine(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    project: str
    priority: int
    queued: int


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
    One of: ok, degraded, failed
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
    description: str
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


class Trial(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    values: dict[str, Any]
    """
    What it tries: fields of `config` by their path.
    """
    metric: str | None
    value: float | None
    """
    Of its best checkpoint so far.
    """
    url: str


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
    number: int
    """
    From 1.
    """
    bytes: int
    sha256: str


class UploadUrls(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    self: str
    part: str
    """
    Replace `{number}` and PUT the part's bytes there.
    """
    complete: str


class Usage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    gpu_seconds: float
    """
    Seconds of all attempts, times `resources.gpus`; of one that goes on, up to its last heartbeat.
    """
    peak_memory_bytes: int | None


class Version(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    version: str
    api: str | None = None
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
    kind: str
    """
    gpu: trains and compares; cpu: checks, exports, delivers; predict: answers predictions.
    """
    host: str
    device: str | None
    memory_bytes: int | None
    gpus: int
    job_id: str | None
    """
    The job that it trains now.
    """
    started_at: AwareDatetime
    last_seen_at: AwareDatetime


class Attempt(BaseModel):
    """
    One time that a worker had the job.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    job_id: str
    attempt: int
    """
    Counts from 1.
    """
    worker: AttemptWorker
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    """
    When it was given back; for a lost worker, its last sign of life.
    """
    outcome: str | None
    """
    State the job went to; null while the attempt goes on.
    """
    reason: str | None
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


class Dataset(BaseModel):
    """
    An uploaded dataset. `ready` ones can be trained on; `invalid` ones have a report that says why not.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    name: str
    project: str
    """
    Whose it is; quotas count it there.
    """
    status: str
    """
    One of: processing, ready, invalid, failed
    """
    filename: str
    source: DatasetSource
    bytes: int | None
    """
    Size of the archive; null until it has been fetched.
    """
    sha256: str | None
    """
    Of the archive. Datasets of the same bytes share one stored archive, and the report of a ready one.
    """
    summary: dict[str, Any] | None
    """
    Counts of the validation report, once there is one.
    """
    error: dict[str, Any] | None
    """
    Why the fetching or the check itself failed: `{code, message, hint, retryable}`.
    """
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    """
    When the check ended.
    """
    urls: DatasetUrls


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
    status: str
    """
    One of: ready, pending
    """
    resolved: dict[str, Any]
    """
    As of a job: every value as used.
    """
    adapted: Adapted | None
    memory: Memory | None
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
    first_seq: int | None
    last_seq: int
    """
    Of the last event in `data`, else `after`. In ascending order give it as `after`, in descending as `before`,
    to get what follows.
    """
    has_more: bool


class File(BaseModel):
    """
    A dataset (`ds_...`), the metrics of a job that has ended (`metrics_job_...`), or a tuned model (`model_...`).
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    bytes: int
    """
    Size of its content; 0 until a dataset has been fetched from where it comes from.
    """
    created_at: int
    expires_at: int | None = None
    """
    Always null: a file stays until it is deleted, or its operator's time for unused datasets has passed.
    """
    filename: str
    purpose: str
    """
    One of: fine-tune, fine-tune-results
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
    name: str
    project: str
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    phase: str | None
    """
    What a running job is doing; new phases may be added.
    """
    status_reason: str | None
    is_terminal: bool
    allowed_actions: list[str]
    """
    What is possible in this state, besides PATCH and clone, which always are.
    """
    base_model: str
    init_from: InitFrom | None
    retry_of: str | None
    resumes_from: str | None
    """
    Job whose last good checkpoint a retry goes on from.
    """
    dataset_id: str
    validation_dataset_id: str | None
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
    resources: JobResources
    priority: int
    limits: JobLimits
    tags: list[str]
    metadata: dict[str, str]
    queue: QueuePosition
    progress: Progress | None
    attempt: int
    """
    Times a worker has started it.
    """
    worker: JobWorker | None
    """
    The worker that has it now.
    """
    best: dict[str, Any] | None
    """
    The best checkpoint so far: `{checkpoint_id, metric, value, epoch}`. `metric` is named as in
    `config.evaluation.metric`: without the `val/` that it has among the metrics.
    """
    result: dict[str, Any] | None
    error: JobFailure | None
    usage: Usage
    trainable: dict[str, Any] | None
    created_at: AwareDatetime
    queued_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
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
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class DatasetPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Dataset]
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class JobPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Job]
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class ModelPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Model]
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class UploadListedPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[UploadListed]
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class RecipeList(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Recipe]


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
    name: str
    project: str
    status: str
    """
    One of: validating_files, queued, running, pausing, paused, cancelling, succeeded, failed, cancelled
    """
    is_terminal: bool
    counts: dict[str, int]
    """
    Jobs by status.
    """
    best: Trial | None
    """
    The job with the highest metric so far.
    """
    trials: list[Trial]
    request: dict[str, Any]
    """
    As submitted.
    """
    created_at: AwareDatetime
    url: str


class Upload(BaseModel):
    """
    A file on its way. Send again what is not in `parts`, in any order, then complete it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    status: str
    """
    Only a `completed` upload can become a dataset; it stays so until it expires. One of: pending, completed, expired
    """
    filename: str
    bytes: int
    sha256: str | None
    """
    As announced; of the whole file once it is completed.
    """
    part_bytes: int
    part_count: int
    parts: list[UploadPart]
    """
    The parts that have arrived, in order; empty once the upload is completed.
    """
    created_at: AwareDatetime
    expires_at: AwareDatetime
    """
    Each part that arrives moves it.
    """
    completed_at: AwareDatetime | None
    urls: UploadUrls


class WorkerList(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Worker]


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
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


class SweepPage(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    data: list[Sweep]
    first_id: str | None
    last_id: str | None
    """
    Give it as `after` to get the next page.
    """
    has_more: bool


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
