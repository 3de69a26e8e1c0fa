"""The errors of the training library: one small tree, each with the stable code that jobs report.

A code is part of the public contract (the `error.code` of a failed job); messages may change.
"""

from __future__ import annotations


class Sam3LoraError(Exception):
    """Base of every error this library raises on purpose.

    Attributes:
        code: stable machine-readable name.
        hint: what the user can do about it, or "".
        retryable: whether the same job may succeed if simply run again.
    """

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(Sam3LoraError):
    """The run configuration is wrong; `errors` lists every fault with its JSON pointer."""

    code = "config_invalid"

    def __init__(self, message: str, *, errors: list[dict[str, str]] | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errors = errors or []


class DatasetError(Sam3LoraError):
    """The dataset cannot be read or holds nothing to train on."""

    code = "dataset_invalid"


class BaseModelError(Sam3LoraError):
    """The base model's weights are missing, gated, or not what they claim to be."""

    code = "base_model_unavailable"


class AdapterError(Sam3LoraError):
    """An adapter's files are damaged or do not fit the model they are loaded onto."""

    code = "adapter_invalid"


class CheckpointError(Sam3LoraError):
    """A training checkpoint is damaged or belongs to another run."""

    code = "checkpoint_invalid"


class OutOfMemoryError(Sam3LoraError):
    """The device ran out of memory during training."""

    code = "gpu_oom"


class DivergedError(Sam3LoraError):
    """The loss or gradients stayed non-finite for too many steps in a row."""

    code = "diverged"


class NothingTrainedError(Sam3LoraError):
    """The run ended without a single optimiser step, which is never a success."""

    code = "nothing_trained"


class StorageFullError(Sam3LoraError):
    """The disk filled up while writing the run's outputs."""

    code = "storage_full"
    retryable = True
