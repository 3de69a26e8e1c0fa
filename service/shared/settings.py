"""Settings of every process, read once at start from `SAM3_*` environment variables and passed down."""

from __future__ import annotations

import base64
import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.shared import pulse
from service.shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "SAM3_"
CLIENT = ("SAM3_API_URL", "SAM3_API_KEY")  # of the client and the commands, which may run where the service does
GIB = 2**30
MAX_GPUS = 16  # of one job
KEY_BYTES = 32
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Settings(BaseSettings):
    """Every field acts; combinations that could lose or double work refuse to start."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    data_dir: Path = Path("sam3-data")
    """Folder of everything this machine keeps: database, storage, uploads in progress, logs, workspaces."""
    database_url: str = Field("", repr=False)
    """`sqlite:////absolute/file.db` or `postgresql://user:password@host/name`; empty: SQLite in `data_dir`."""
    database_pooler: bool = False
    """Between the processes and PostgreSQL stands a pooler, such as PgBouncer, that gives each transaction whatever
    connection is free: nothing is then kept on a connection."""
    broker_url: str = Field("", repr=False)
    """`redis://...`, `rediss://...` or `redis+socket:///path`; empty: the embedded broker's socket in `data_dir`."""
    storage_url: str = ""
    """`file:///absolute/folder` or `s3://bucket/prefix` that keeps datasets and checkpoints; empty: a folder in
    `data_dir`. S3 credentials are those of the usual AWS_* variables."""
    storage_endpoint: str = ""
    """URL of the S3-compatible service, such as `http://minio:9000`; empty: Amazon's."""
    storage_region: str = ""
    """Region of the bucket; empty: AWS_REGION, else us-east-1."""
    storage_path_style: bool = True
    """Name the bucket in the path, as most S3-compatible services need; false: in the host, also of the endpoint."""

    max_failed_keys: int = Field(20, ge=1)
    """Wrong keys that an address may show in a minute before it is refused for the rest of it."""
    requests_per_minute: int = Field(6000, ge=1)
    """Requests that one key may make in a minute; more are refused with 429."""
    host: str = "127.0.0.1"
    """Address the API listens on."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port of the API; 0: any free one."""
    require_keys: bool = False
    """Ask every client for an API key (`sam3-service keys create` makes the first); without it everybody who reaches
    the API may do everything."""
    allow_unauthenticated_network: bool = False
    """Listen on an address that other machines reach although the API asks nobody for a key."""
    public_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of hosts, separated by commas, under which an API that asks for no key may be asked, such as that of a
    proxy in front of it: other names with a dot, which a page in a browser may have made its own, are refused."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line that is written."""
    pulse_file: Path | None = None
    """File that the worker or reconciler which reads this touches as it goes round, for a probe that looks at its age
    (`python -m service.shared.pulse FILE`); a process each. Unset: none."""

    quota_active_jobs: int | None = Field(None, ge=0)
    """Jobs that have not ended that a project may have, unless it was given its own quota, as of all that follow; more
    are refused. Unset: any number."""
    quota_running_gpus: int | None = Field(None, ge=0)
    """GPUs that the running jobs of a project may have together; others wait in the queue. Unset: any number."""
    quota_gpu_seconds_per_month: int | None = Field(None, ge=0)
    """GPU seconds that a project may use in a month (UTC); then no job of it is created or started. Unset: any."""
    quota_stored_bytes: int | None = Field(None, ge=0)
    """Bytes that storage may hold for a project; then uploads, datasets and jobs are refused. Unset: any number."""
    quota_datasets: int | None = Field(None, ge=0)
    """Datasets that a project may have; more are refused. Unset: any number."""

    heartbeat_interval_s: float = Field(5, gt=0)
    """Seconds between a worker's renewals of its lease."""
    lease_timeout_s: float = Field(30, gt=0)
    """Seconds without a renewal after which the reconciler takes the work away."""
    self_fence_s: float = Field(20, gt=0)
    """Seconds without a renewal after which a trainer ends itself."""
    kill_grace_s: float = Field(5, gt=0)
    """Seconds that ending a trainer by force may take; self_fence_s + kill_grace_s stays below lease_timeout_s."""
    terminate_grace_s: float = Field(20, gt=0)
    """Seconds a trainer gets after SIGTERM to save a checkpoint before it is killed."""
    trainer_memory_bytes: int | None = Field(None, ge=2**28)
    """Memory of the machine, in bytes, that the trainer of a job may take with its data loaders; one that takes more is
    ended and its job fails. Unset: as much as there is."""
    no_progress_timeout_s: float = Field(1800, gt=0)
    """Seconds without any event from a trainer, or from a comparison, after which it is ended as hung."""
    poll_interval_s: float = Field(30, gt=0)
    """Seconds between an idle worker's looks into the database, which find work without a broker."""
    reconcile_interval_s: float = Field(5, gt=0)
    """Seconds between passes of the reconciler."""
    republish_interval_s: float = Field(30, gt=0)
    """Seconds after which work that nobody claimed is announced to the workers again."""
    storage_retry_s: float = Field(300, gt=0)
    """Seconds that a worker with something to store waits for storage that is away, before its attempt fails."""
    worker_gpus: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_GPUS)], ...], NoDecode] = ()
    """Training workers of the embedded service: the number of GPUs of each, separated by commas (without GPUs: of
    processes on the CPU); empty: a worker for each GPU that the machine shows, one if it shows none."""
    retry_backoff_s: float = Field(10, gt=0)
    """Seconds before the second attempt of work that failed through no fault of its own; doubles each time."""
    retry_backoff_max_s: float = Field(600, gt=0)
    """Longest wait between attempts, in seconds."""
    ingest_max_attempts: int = Field(3, ge=1, le=100)
    """Attempts to check an uploaded dataset before it fails."""
    work_max_attempts: int = Field(2, ge=1, le=100)
    """Attempts at a prediction, an export or a comparison before it fails."""

    max_upload_bytes: int = Field(20 * GIB, ge=1)
    """Largest dataset archive, in bytes."""
    max_json_bytes: int = Field(2**20, ge=1024)
    """Largest JSON request body, in bytes."""
    upload_idle_timeout_s: float = Field(60, gt=0)
    """Seconds an upload, or the fetching of a URI, may stall before it is dropped."""
    max_log_bytes: int = Field(16 * 2**20, ge=4096)
    """Log text kept of one job, in bytes; what comes later is dropped with a note."""
    max_wait_s: float = Field(60, gt=0, le=3600)
    """Longest time that a request may ask to wait for news of a job (`Prefer: wait=`), in seconds."""
    estimate_wait_s: float = Field(20, ge=0, le=600)
    """Longest time that `POST /jobs/estimate` waits for a worker before it answers 202, in seconds."""
    estimate_retention_s: float = Field(7 * 86400, gt=0)
    """Seconds after which what was worked out for an estimate is forgotten."""
    stream_poll_interval_s: float = Field(0.3, gt=0)
    """Seconds between the API's looks into the database for news of the jobs that clients follow."""
    stream_heartbeat_s: float = Field(15, gt=0)
    """Seconds without news after which a stream carries a comment, which keeps proxies from closing it."""
    stream_stall_timeout_s: float = Field(60, gt=0)
    """Seconds a client of a stream may read nothing before it is dropped."""
    max_connections: int = Field(4000, ge=2)
    """Connections that one API process keeps open at the same time, streams among them; more are answered with 503."""
    max_streams: int = Field(1000, ge=1)
    """Streams that one API process keeps open at the same time; more are refused with 503."""
    dataset_uri_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts (or host:port) that datasets may be fetched from by https, separated by commas; empty: none."""
    dataset_buckets: Annotated[tuple[str, ...], NoDecode] = ()
    """Places in buckets, `s3://bucket` or `s3://bucket/folder`, that datasets may be read from, separated by commas;
    empty: none. Workers read them at `storage_endpoint` with the credentials of the usual AWS_* variables."""
    dataset_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders of the workers that datasets may be read from, separated by colons; empty: none."""
    fetch_timeout_s: float = Field(6 * 3600, gt=0)
    """Seconds that fetching a dataset from its URI may take."""
    dataset_retention_s: float | None = Field(None, gt=0)
    """Seconds after its check, and after the end of the last job on it, that a dataset is deleted; unset: never."""
    job_retention_s: float | None = Field(None, gt=0)
    """Seconds after its end that a job is deleted as `DELETE /jobs/{id}` does: with everything but its model. It no
    longer counts for `dataset_retention_s` then, and its sweep tells no more of it. Unset: never."""
    idempotency_retention_s: float = Field(86400, gt=0)
    """Seconds an Idempotency-Key is remembered."""
    upload_retention_s: float = Field(2 * 86400, gt=0)
    """Seconds after its last part that an upload in parts is given up."""
    staging_retention_s: float = Field(86400, gt=0)
    """Seconds after which the leftovers of a broken upload are deleted."""
    worker_retention_s: float = Field(86400, gt=0)
    """Seconds after its last sign of life that a worker is forgotten."""

    max_image_bytes: int = Field(32 * 2**20, ge=1)
    """Largest image of a prediction, in bytes."""
    max_image_pixels: int = Field(50_000_000, ge=1)
    """Most pixels of an image of a prediction."""
    max_waiting_predictions: int = Field(100, ge=1)
    """Predictions that may wait for a worker; more are refused with 429."""
    max_waiting_comparisons: int = Field(100, ge=1)
    """Comparisons of one project that may wait for a worker; more are refused with 429."""
    comparison_timeout_s: float = Field(6 * 3600, gt=0)
    """Seconds that measuring the two models of a comparison may take."""
    predict_wait_s: float = Field(30, ge=0, le=600)
    """Longest time, in seconds, that a request waits for its prediction before it is told where to ask for it."""
    predict_timeout_s: float = Field(300, gt=0)
    """Seconds a prediction may take, including the loading of the base model, before its process is ended."""
    predict_idle_s: float = Field(600, gt=0)
    """Seconds without a prediction after which the process that holds the model is ended."""
    predict_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models predict; auto: a CUDA device if there is one."""
    predict_adapters: int = Field(4, ge=1, le=64)
    """Models of one base that stay in memory ready to predict."""
    prediction_retention_s: float = Field(3600, gt=0)
    """Seconds after which a prediction and its image are forgotten, at the next hourly sweep."""
    export_timeout_s: float = Field(3600, gt=0)
    """Seconds the making of an export may take before it is ended."""

    secret_key: str = Field("", repr=False)
    """Key that the secrets of webhooks are stored under: 32 bytes as URL-safe base64. Several, separated by commas: the
    first is used, and what others have stored can be read. Empty: `secret.key` in `data_dir`, made when it is first
    needed, where the database is SQLite; no webhooks where it is PostgreSQL, which other machines use as well."""
    webhook_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts (or host:port) that webhooks are sent to also by http and at addresses that are not public, separated by
    commas; empty: none."""
    webhook_timeout_s: float = Field(10, gt=0, le=60)
    """Seconds in which a receiver of a webhook must have answered."""
    webhook_tests_per_minute: int = Field(10, ge=1)
    """Test messages that a project may have sent in a minute; more are refused with 429."""
    webhook_disable_after_s: float = Field(5 * 86400, gt=0)
    """Seconds of nothing but failures after which a webhook endpoint is disabled."""
    webhook_retention_s: float = Field(30 * 86400, gt=0)
    """Seconds after its end that a webhook's delivery is forgotten, at the next hourly sweep."""

    checkpoint: Path | None = None
    """Local file of the official SAM3 weights (`sam3.pt`)."""
    checkpoint_from_hub: bool = False
    """Fetch the official weights from the hub (gated: needs an account that was granted access)."""

    trackers: Annotated[tuple[Literal["mlflow", "wandb"], ...], NoDecode] = ()
    """Where trainers send the configuration and the metrics of every job as well, separated by commas: mlflow, wandb.
    For the training workers, with the MLFLOW_ and WANDB_ variables that say where that is; empty: nowhere."""
    tracker_project: str = Field("sam3-lora", min_length=1, max_length=128)
    """Experiment of MLflow and project of Weights & Biases that jobs are runs of."""

    @field_validator("data_dir", "checkpoint", "pulse_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()

    @field_validator("dataset_uri_hosts", "webhook_private_hosts", "public_hosts", "trackers", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return [word.strip().lower() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("worker_gpus", "dataset_buckets", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("dataset_buckets")
    @classmethod
    def _readable_buckets(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        for place in places:
            parts = urlsplit(place)
            if parts.scheme != "s3" or not BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
                raise ValueError("every place is s3://bucket or s3://bucket/folder")
        return tuple(place.rstrip("/") for place in places)

    @field_validator("dataset_roots", mode="before")
    @classmethod
    def _roots(cls, value: object) -> object:
        return [root for root in value.split(os.pathsep) if root] if isinstance(value, str) else value

    @field_validator("dataset_roots")
    @classmethod
    def _absolute_roots(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        if not all(root.is_absolute() and ".." not in root.parts for root in roots):
            raise ValueError("every root is an absolute path without '..'")
        return roots

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: dict[str, Any]) -> dict[str, Any]:
        data_dir = Path(values.get("data_dir") or "sam3-data").expanduser().resolve()
        defaults = {
            "database_url": f"sqlite:///{data_dir / 'service.db'}",
            "broker_url": f"redis+socket://{data_dir / 'broker.sock'}",
            "storage_url": (data_dir / "storage").as_uri(),
        }
        return values | {name: values.get(name) or default for name, default in defaults.items()}

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        if url.startswith("postgres://"):  # the form many hosts print; SQLAlchemy knows only the other
            url = "postgresql://" + url.removeprefix("postgres://")
        if url.startswith("sqlite:") and not url.startswith("sqlite:////"):
            raise ValueError("an SQLite URL names an absolute file, as in sqlite:////var/lib/sam3/service.db")
        if not url.startswith(("sqlite:////", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("must begin with sqlite:/// or postgresql://")
        _require_readable(url)
        return url

    @field_validator("secret_key")
    @classmethod
    def _keys(cls, value: str) -> str:
        for key in value.split(",") if value else ():
            try:
                decoded = base64.b64decode(key.strip(), altchars=b"-_", validate=True)
            except ValueError:
                decoded = b""
            if len(decoded) != KEY_BYTES:
                raise ValueError(
                    f"every key is URL-safe base64 of {KEY_BYTES} bytes: openssl rand -base64 32 | tr +/ -_"
                )
        return value

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("must begin with redis://, rediss:// or redis+socket://")
        _require_readable(url)
        return url

    @field_validator("storage_url")
    @classmethod
    def _known_storage(cls, url: str) -> str:
        parts = urlsplit(url)
        is_folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
        is_bucket = parts.scheme == "s3" and BUCKET.fullmatch(parts.netloc)
        if not (is_folder or is_bucket) or parts.query or parts.fragment:
            raise ValueError("must be file:///absolute/folder or s3://bucket/prefix")
        return url

    @field_validator("storage_endpoint")
    @classmethod
    def _known_endpoint(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
            raise ValueError("must be http://host:port or https://host:port; credentials belong into AWS_* variables")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if faults := list(self._unsafe()):
            raise ValueError("\n".join(faults))
        return self

    def _unsafe(self) -> Iterator[str]:
        if self.self_fence_s + self.kill_grace_s >= self.lease_timeout_s:
            yield (
                f"self_fence_s + kill_grace_s ({self.self_fence_s:g} + {self.kill_grace_s:g}) must be below "
                f"lease_timeout_s ({self.lease_timeout_s:g}): else two trainers of one job could overlap"
            )
        if self.heartbeat_interval_s * 2 > self.self_fence_s:
            yield "heartbeat_interval_s must be at most half of self_fence_s: one late beat is not a failure"
        if self.max_streams >= self.max_connections:
            yield (
                f"max_streams ({self.max_streams}) must be below max_connections ({self.max_connections}): else "
                "streams leave none for requests"
            )
        if self.pulse_file is not None and self.heartbeat_interval_s * 2 > pulse.MAX_AGE_S:
            yield (
                f"heartbeat_interval_s must be at most {pulse.MAX_AGE_S / 2:g} with a pulse_file: a probe takes "
                f"{pulse.MAX_AGE_S:g} s without a beat for a hang"
            )
        if not (is_loopback(self.host) or self.require_keys or self.allow_unauthenticated_network):
            yield (
                f"host {self.host} is reachable from other machines and this API asks for no key: set "
                f"{PREFIX}REQUIRE_KEYS=true, bind 127.0.0.1 behind an authenticating proxy, or set "
                f"{PREFIX}ALLOW_UNAUTHENTICATED_NETWORK=true"
            )
        has_buckets = self.storage_dir is None or self.dataset_buckets
        if (self.storage_endpoint or self.storage_region) and not has_buckets:
            yield (
                "storage_endpoint and storage_region belong to a storage_url that begins with s3://, or to "
                "dataset_buckets"
            )
        if self.checkpoint is not None and not self.checkpoint.is_file():
            yield f"checkpoint {self.checkpoint} is not a file"

    @property
    def storage_dir(self) -> Path | None:
        """Folder behind `storage_url`; None if it is a bucket."""
        parts = urlsplit(self.storage_url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def staging_dir(self) -> Path:
        """Folder of uploads in progress."""
        return self.data_dir / "staging"

    @property
    def base_models(self) -> tuple[str, ...]:
        """Base models that this installation can train."""
        official = self.checkpoint is not None or self.checkpoint_from_hub
        return ("sam3", "sam3-tiny") if official else ("sam3-tiny",)


def load(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` win.

    Raises:
        SettingsError: with one line per fault, also for a `SAM3_*` variable that no setting reads.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    unknown = [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in (*known, *CLIENT)]
    faults = [f"{name}: no such setting{_nearest(name, known)}" for name in sorted(unknown)]
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        faults += _lines(error)
        faults += _further(error, overrides)
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_readable(url: str) -> None:
    """Raise ValueError, without the URL, if a password in it would be taken for something else, which errors show."""
    try:
        parts = urlsplit(url)
        is_clear = parts.netloc.count("@") <= 1 and (parts.port is None or parts.port > 0)
    except ValueError:
        is_clear = False
    if not is_clear:
        raise ValueError("cannot be read as a URL: in user and password, write / as %2F, @ as %40, # as %23, ? as %3F")


def _lines(error: ValidationError) -> list[str]:
    found = []
    for item in error.errors(include_url=False, include_input=False):
        name = PREFIX + str(item["loc"][0]).upper() + ": " if item["loc"] else ""
        found += [name + line for line in str(item["msg"]).removeprefix("Value error, ").splitlines()]
    return found


def _further(error: ValidationError, overrides: dict[str, Any]) -> list[str]:
    """What is wrong with combinations of settings beside wrong settings, which keep them from being looked at."""
    wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]} & set(Settings.model_fields)
    if not wrong:
        return []
    try:
        Settings(**overrides | {name: Settings.model_fields[name].get_default() for name in wrong})
    except ValidationError as second:
        return [line for line in _lines(second) if not any(name in line.lower() for name in wrong)]
    return []


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
