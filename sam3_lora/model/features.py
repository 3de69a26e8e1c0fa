"""A bounded store of tensors by name, in memory or in a folder.

What does not fit any more is not kept: images come round once in each epoch, where throwing out an old one for a new
one would mean that none is ever found.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)
TENSOR, SUFFIX = "tokens", ".safetensors"
MOST_NAMES = 2**17  # that loader processes can know: 1 MB; further images are read although they need not be


class FeatureStore(Protocol):
    """What `Encoders` needs of a store, and loader processes: they need not read an image whose features are kept."""

    def get(self, name: str) -> Tensor | None: ...

    def put(self, name: str, tensor: Tensor) -> None: ...

    def load(self, name: str) -> Tensor | None:
        """In a loader process: the tensor, where it can be had there."""

    def holds(self, name: str) -> bool:
        """In a loader process: whether `get` is sure to give it in the process that began."""


class MemoryStore:
    """Tensors in this process's memory, on the CPU."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0  # bytes
        self._tensors: dict[str, Tensor] = {}
        self._names = SharedNames()

    def get(self, name: str) -> Tensor | None:
        return self._tensors.get(name)

    def put(self, name: str, tensor: Tensor) -> None:
        if name not in self._tensors and self.size + tensor.nbytes <= self.capacity:
            self._tensors[name] = tensor.cpu().clone()
            self.size += tensor.nbytes
            self._names.add(name)

    def load(self, name: str) -> Tensor | None:
        return None

    def holds(self, name: str) -> bool:
        return name in self._names


class SharedNames:
    """A set of names that one process adds to and the processes that it starts look into."""

    def __init__(self) -> None:
        self._hashes = torch.zeros(MOST_NAMES, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._count = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def add(self, name: str) -> None:
        count = int(self._count)
        if count < len(self._hashes):
            self._hashes[count] = _hash(name)
            self._count += 1  # last: a name that is half written is not looked at

    def __contains__(self, name: str) -> bool:
        return bool((self._hashes[: int(self._count)] == _hash(name)).any())


class FolderStore:
    """Tensors as safetensors files with a checksum, which other runs with the same base can use.

    Args:
        folder: belongs to the store; only its own files are looked at.
        namespace: what the tensors depend on beside their names, such as the base's fingerprint.
        capacity: bytes of all files together, those of other namespaces included.
    """

    def __init__(self, folder: Path, namespace: str, capacity: int) -> None:
        self.folder = folder / hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.capacity = capacity
        self.size = sum(file.stat().st_size for file in folder.glob(f"*/*{SUFFIX}"))

    def get(self, name: str) -> Tensor | None:
        file = self._file(name)
        try:
            with safe_open(file, "pt") as body:
                tensor: Tensor = body.get_tensor(TENSOR)
                if (body.metadata() or {}).get("crc32") == _checksum(tensor):
                    return tensor
                problem = "its checksum is another"
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            problem = str(error)
        log.warning("%s is damaged (%s): the features are computed again", file, problem)
        self.size -= file.stat().st_size if file.exists() else 0
        file.unlink(missing_ok=True)
        return None

    def load(self, name: str) -> Tensor | None:
        return self.get(name)

    def holds(self, name: str) -> bool:
        return False  # a file may turn out damaged

    def put(self, name: str, tensor: Tensor) -> None:
        file, tensor = self._file(name), tensor.cpu().contiguous()
        if file.exists() or self.size + tensor.nbytes > self.capacity:
            return
        partial = file.with_suffix(f".{os.getpid()}.part")
        try:
            partial.write_bytes(save({TENSOR: tensor}, {"crc32": _checksum(tensor)}))
            partial.replace(file)  # whole or not at all, whoever else writes the same
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            log.warning("cannot keep features in %s (%s): they are computed each time", self.folder, error)
            self.capacity = 0
            return
        self.size += file.stat().st_size

    def _file(self, name: str) -> Path:
        return self.folder / (hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + SUFFIX)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data):08x}"
