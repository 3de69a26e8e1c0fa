# Made from `_async` by `make generate`: change it there.
"""Checkpoints of a job: adapters to take away."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.client import schemas
from sam3_lora.client._patience import in_thread
from sam3_lora.client._sync.resources import Collection, Resource
from sam3_lora.client.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable


class Checkpoint(schemas.Checkpoint, Resource):
    """A checkpoint of the service."""

    COLLECTION = "/checkpoints"

    def download(
        self,
        target: str | Path = ".",
        *,
        unpack: bool = True,
        on_progress: Callable[[int, int | None], object] = lambda done, total: None,
    ) -> Path:
        """Fetch all its files; what was fetched before a fault is not fetched again, and hashes are checked.

        Args:
            target: folder to make, with the files in it; with `unpack=False` the zip archive to write.
            on_progress: called with bytes that are there, and of all of them.

        Returns:
            The folder, or the archive.

        Raises:
            IntegrityError: if it arrived damaged.
        """
        path = Path(target)
        archive = path / f".{self.id}.zip" if unpack else path
        if self.archive is None:
            raise ClientError(f"checkpoint {self.id} is of an older service: download its files one by one")
        self._transport.download(self.archive.url, archive, sha256=self.archive.sha256, on_progress=on_progress)
        if unpack:
            in_thread(_unpack, archive, path)
        return path


class Checkpoints(Collection[Checkpoint]):
    """`client.checkpoints`."""

    KIND = Checkpoint


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the plain files of an archive, each whole or not at all."""
    with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name in opened.namelist():
            if Path(name).name != name:
                raise ClientError(f"the archive holds {name!r}, which is no plain file name")
            opened.extract(name, scratch)
            (Path(scratch) / name).replace(folder / name)
    archive.unlink()
