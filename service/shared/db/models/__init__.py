"""Rows. Importing this package registers every table."""

from service.shared.db.models.api_keys import ApiKey
from service.shared.db.models.artifacts import Artifact
from service.shared.db.models.base import Base, OfProject
from service.shared.db.models.checkpoints import Checkpoint, CheckpointFile
from service.shared.db.models.comparisons import Comparison, ComparisonFile
from service.shared.db.models.datasets import Dataset
from service.shared.db.models.estimates import Estimate
from service.shared.db.models.idempotency import IdempotencyKey
from service.shared.db.models.jobs import Attempt, Job, JobEvent, JobLabel, LogChunk, MetricPoint
from service.shared.db.models.models import Export, Model, ModelFile
from service.shared.db.models.predictions import Prediction
from service.shared.db.models.quotas import AttemptUsage, JobOutcome, ProjectQuota
from service.shared.db.models.schema_floor import SchemaFloor
from service.shared.db.models.sessions import PageSession
from service.shared.db.models.sweeps import Sweep
from service.shared.db.models.tallies import Tally
from service.shared.db.models.uploads import Upload, UploadPart
from service.shared.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from service.shared.db.models.workers import Worker

__all__ = [
    "ApiKey",
    "Artifact",
    "Attempt",
    "AttemptUsage",
    "Base",
    "Checkpoint",
    "CheckpointFile",
    "Comparison",
    "ComparisonFile",
    "Dataset",
    "Estimate",
    "Export",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobLabel",
    "JobOutcome",
    "LogChunk",
    "MetricPoint",
    "Model",
    "ModelFile",
    "OfProject",
    "PageSession",
    "Prediction",
    "ProjectQuota",
    "SchemaFloor",
    "Sweep",
    "Tally",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
