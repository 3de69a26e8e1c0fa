"""What a machine has for the service: space, limits, GPUs, and the files that settings name."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml

from service.shared import gpus
from service.shared.checks import existing, fault, file_system, ok, warning
from service.shared.settings import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.checks import Finding
    from service.shared.settings import Settings

LEAST_FREE_BYTES = GIB
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where loaders put batches, not we
LEAST_SHARED_BYTES = GIB
SPARE_FILES = 200  # database, storage
LEAST_WEIGHTS_BYTES = 100 * 2**20  # of SAM3, which has gigabytes: less is a page of text or an interrupted download
WEIGHTS_BEGIN = (b"PK\x03\x04", b"\x80")  # torch.save: a zip archive, or before 1.6 a pickle
NVIDIA_DEVICE = Path("/dev/nvidiactl")


def space(settings: Settings) -> Iterator[Finding]:
    """Whether there is room for what comes in."""
    folders = {"data_dir": settings.data_dir} | ({"storage": settings.storage_dir} if settings.storage_dir else {})
    for name, folder in folders.items():
        free = shutil.disk_usage(existing(folder)).free
        told = f"{free / GIB:.1f} GiB are free for {name} ({folder})"
        if free < LEAST_FREE_BYTES:
            yield fault("space", told, "make room, or choose another disk")
        elif free < settings.max_upload_bytes:
            advice = f"lower SAM3_MAX_UPLOAD_BYTES ({settings.max_upload_bytes / GIB:.1f} GiB), or make room"
            yield warning("space", f"{told}, less than the largest upload", advice)
        else:
            yield ok("space", told)
        if os.statvfs(existing(folder)).f_files and not os.statvfs(existing(folder)).f_favail:
            yield fault("space", f"the disk of {folder} can hold no more files", "delete some")


def open_files(settings: Settings) -> Iterator[Finding]:
    """Whether each connection can have its file."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.max_connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        advice = f"raise it (`ulimit -Hn`) to {needed}, or lower SAM3_MAX_CONNECTIONS"
        yield warning("open_files", f"a process may open {hard} files, fewer than its connections need", advice)
    else:
        yield ok("open_files", "a process may open as many files as it needs")


def shared_memory(_settings: Settings) -> Iterator[Finding]:
    """Whether data loaders can hand over batches."""
    if not SHARED_MEMORY.is_dir():
        yield warning(
            "shared_memory", f"there is no {SHARED_MEMORY}", "mount a tmpfs there, or train with num_workers 0"
        )
        return
    size = shutil.disk_usage(SHARED_MEMORY).total
    told = f"{SHARED_MEMORY} has {size / GIB:.1f} GiB"
    if size < LEAST_SHARED_BYTES:
        advice = "give the container --shm-size 8g (Kubernetes: an emptyDir of medium Memory), or set num_workers 0"
        yield warning("shared_memory", f"{told}, which large batches fill", advice)
    else:
        yield ok("shared_memory", told)


def devices(settings: Settings) -> Iterator[Finding]:
    """Whether the driver shows GPUs, and how many."""
    found = gpus.visible()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if found or NVIDIA_DEVICE.exists():
            yield fault("gpu", f"the NVIDIA driver does not work ({error})", "install one that fits, or start again")
            return
    else:
        pynvml.nvmlShutdown()
    if found:
        yield ok("gpu", ", ".join(f"{gpu.name}: {gpu.model}" for gpu in found))
    elif os.environ.get(gpus.VISIBLE) is not None and NVIDIA_DEVICE.exists():
        yield warning("gpu", f"{gpus.VISIBLE} hides every GPU: trains on the CPU", f"unset {gpus.VISIBLE}")
    elif "sam3" in settings.base_models:
        advice = "start the worker where GPUs are (docker run --gpus all); on a CPU only sam3-tiny trains in good time"
        yield warning("gpu", "no GPU is to be seen", advice)
    else:
        yield ok("gpu", "no GPU is to be seen: sam3-tiny trains on the CPU")


def weights(settings: Settings) -> Iterator[Finding]:
    """Whether the weights of SAM3 are where the settings say."""
    if settings.checkpoint is not None:
        size = settings.checkpoint.stat().st_size
        with settings.checkpoint.open("rb") as file:
            begins = file.read(4)
        if size < LEAST_WEIGHTS_BYTES or not begins.startswith(WEIGHTS_BEGIN):
            advice = "fetch sam3.pt anew and compare its size and SHA-256 with the hub's"
            message = f"SAM3_CHECKPOINT ({settings.checkpoint}, {size} bytes) does not look like the weights of SAM3"
            yield fault("weights", message, advice)
        else:
            yield ok("weights", f"{settings.checkpoint} has {size / GIB:.1f} GiB")
    elif settings.checkpoint_from_hub:
        if _hub_token():
            yield ok("weights", "come from the hub")
        else:
            advice = "set HF_TOKEN to a token of an account that was granted access to SAM3"
            yield warning("weights", "SAM3_CHECKPOINT_FROM_HUB is set, but there is no token for the hub", advice)
    else:
        yield ok("weights", "sam3-tiny only; SAM3_CHECKPOINT or SAM3_CHECKPOINT_FROM_HUB adds SAM3")


def dataset_roots(settings: Settings) -> Iterator[Finding]:
    """Whether the folders that datasets may be read from are there."""
    for root in settings.dataset_roots:
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            advice = "mount it where cpu workers run, or take it out of SAM3_DATASET_ROOTS"
            yield warning("dataset_roots", f"{root} is no folder that can be read here", advice)
        else:
            yield ok("dataset_roots", f"{root} ({file_system(root) or 'unknown file system'})")


def _hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    place = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN")) or place.is_file()
