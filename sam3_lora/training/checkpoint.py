"""Checkpoints of a run: an adapter folder, with the training state where the run can go on from it.

A checkpoint folder appears complete or not at all: it is written beside its place, synced and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sam3_lora.errors import CheckpointError, StorageFullError
from sam3_lora.lora.adapter import AdapterInfo, save_adapter

if TYPE_CHECKING:
    from torch import nn

    from sam3_lora.config import RunConfig

STATE_FILE, SUMMARY_FILE = "training_state.pt", "checkpoint.json"
_NEW, _OLD = ".new-", ".old-"
# Settings that may differ when a run is resumed; anything else would make it another run.
RESUMABLE_CHANGES = {
    ("training", "max_epochs"),
    ("training", "max_steps"),
    ("training", "max_seconds"),
    ("training", "batch_size"),
    ("training", "gradient_accumulation_steps"),
    ("training", "num_workers"),
    ("training", "num_threads"),
    ("training", "keep_checkpoints"),
    ("training", "device"),
    ("training", "activation_checkpointing"),
    ("training", "cache_features"),
    ("training", "feature_cache_gb"),
}
_COMPARED = ("lora", "dataset", "training")
_PATHS = ("train_img_folder", "train_ann_file", "val_img_folder", "val_ann_file")


def write_checkpoint(
    folder: Path, model: nn.Module, info: AdapterInfo, summary: dict[str, Any], state: dict[str, Any] | None
) -> None:
    """Write a checkpoint to `folder`, replacing one of the same name.

    Args:
        summary: JSON facts (epoch, step, metrics) for `checkpoint.json`; the files' sha256 are added.
        state: what `--resume` needs; None for an adapter that is only to be used.

    Raises:
        StorageFullError: if the disk is full; what was there before is intact.
    """
    fresh = folder.with_name(_NEW + folder.name)
    with _disk_full_named(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        save_adapter(model, fresh, info)
        if state is not None:
            torch.save(state, fresh / STATE_FILE)
        files = {file.name: _sha256(file) for file in sorted(fresh.iterdir())}
        (fresh / SUMMARY_FILE).write_text(json.dumps({**summary, "sha256": files}, indent=2) + "\n", encoding="utf-8")
        for file in fresh.iterdir():
            _sync(file)
        old = folder.with_name(_OLD + folder.name)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(checkpoints: Path) -> None:
    """Finish what a killed process left: drop half-written folders, put back one that was being replaced."""
    for leftover in checkpoints.glob(_OLD + "*"):
        place = leftover.with_name(leftover.name.removeprefix(_OLD))
        if place.exists():
            shutil.rmtree(leftover)
        else:
            leftover.rename(place)
    for leftover in checkpoints.glob(_NEW + "*"):
        shutil.rmtree(leftover)


def find_resumable(path: Path) -> Path:
    """The checkpoint folder that `--resume PATH` means: the folder itself, or the newest of a run directory.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    checkpoints = path / "checkpoints"
    if checkpoints.is_dir():
        recover(checkpoints)
        found = [state.parent for state in checkpoints.glob(f"*/{STATE_FILE}")]
        if found:
            return max(found, key=lambda folder: int(read_summary(folder)["step"]))
    raise CheckpointError(
        f"nothing to resume in {path}", hint=f"give a run directory, or a checkpoint folder with {STATE_FILE}"
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """The facts of `checkpoint.json`.

    Raises:
        CheckpointError: if it is missing or malformed.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        return {**summary, "step": int(summary["step"]), "sha256": dict(summary["sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no readable {SUMMARY_FILE} in {folder}: {error}") from error


def read_state(folder: Path, config: RunConfig, base_fingerprint: str) -> dict[str, Any]:
    """Verify a checkpoint's files, that it belongs to this run, and return its training state.

    Raises:
        CheckpointError: if a file is damaged, or a setting or the base differs (all differences are named).
    """
    for name, expected in read_summary(folder)["sha256"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is missing or damaged (sha256 differs)")
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"cannot read {folder / STATE_FILE}: {error}") from error
    differences = _differences(state["config"], comparable(config))
    if state["base_fingerprint"] != base_fingerprint:
        differences.append("the base model's weights")
    if differences:
        raise CheckpointError(
            f"the checkpoint belongs to another run; these differ: {', '.join(differences)}",
            hint="resume with the same configuration; only "
            + ", ".join(".".join(key) for key in sorted(RESUMABLE_CHANGES))
            + ", evaluation and output may change",
        )
    return state


def comparable(config: RunConfig) -> dict[str, Any]:
    """The settings that make a run what it is."""
    values = config.model_dump(mode="json", include=set(_COMPARED))
    for path in _PATHS:  # the data may have moved
        values["dataset"].pop(path, None)
    return values


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{key} ({then[section].get(key)!r} then, {value!r} now)"
        for section in _COMPARED
        for key, value in now[section].items()
        if (section, key) not in RESUMABLE_CHANGES and then[section].get(key) != value
    ]


@contextmanager
def _disk_full_named(fresh: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        shutil.rmtree(fresh, ignore_errors=True)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _is_full(fresh.parent):
            raise StorageFullError(f"the disk is full: cannot write {fresh.name.removeprefix(_NEW)}") from error
        raise


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1 << 20


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
