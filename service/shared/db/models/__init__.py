"""Rows. Importing this package registers every table."""

from service.shared.db.models.artifacts import Artifact
from service.shared.db.models.base import Base
from service.shared.db.models.checkpoints import Checkpoint, CheckpointFile
from service.shared.db.models.datasets import Dataset
from service.shared.db.models.idempotency import IdempotencyKey
from service.shared.db.models.jobs import Attempt, Job, JobEvent, LogChunk, MetricPoint
from service.shared.db.models.models import Export, Model, ModelFile
from service.shared.db.models.predictions import Prediction
from service.shared.db.models.workers import Worker

__all__ = [
    "Artifact",
    "Attempt",
    "Base",
    "Checkpoint",
    "CheckpointFile",
    "Dataset",
    "Export",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "LogChunk",
    "MetricPoint",
    "Model",
    "ModelFile",
    "Prediction",
    "Worker",
]
