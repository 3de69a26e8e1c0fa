"""The regular files of a dataset folder, and the likeliest meaning of a name that is not among them."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

from sam3_lora.coco.report import quote


class FolderMembers:
    """Names relative to `root`, found once. Links are never followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: set[str] = set()
        self._links: set[str] = set()
        for folder, folders, names in os.walk(root):
            for name in [*names, *folders]:
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                if path.is_symlink():
                    self._links.add(relative)
                elif name in names and path.is_file():
                    self._files.add(relative)

    def find(self, folder: Path, name: str) -> Path | None:
        """The regular file of exactly this name below `folder`, which lies in the root."""
        key = self._key(folder, name)
        return self._root / key if key in self._files else None

    def explain(self, folder: Path, name: str) -> str:
        """A hint for a name that was not found."""
        key = self._key(folder, name)
        parents = [str(parent) for parent in PurePosixPath(key).parents]
        if any(path in self._links for path in [key, *parents]):
            return "this is a link: put the file itself there"
        near = self._by_folded.get(_folded(key)) or self._by_basename.get(_folded(key).rpartition("/")[2])
        if near is None:
            return "add the image, or remove its record and annotations"
        return f"there is a file {quote(near)}: file_name is relative to the image folder and must match exactly"

    def _key(self, folder: Path, name: str) -> str:
        prefix = folder.relative_to(self._root).as_posix()
        return name if prefix == "." else f"{prefix}/{name}"

    @cached_property
    def _by_folded(self) -> dict[str, str]:
        return {_folded(file): file for file in sorted(self._files)}

    @cached_property
    def _by_basename(self) -> dict[str, str]:
        return {_folded(file.rpartition("/")[2]): file for file in sorted(self._files)}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
