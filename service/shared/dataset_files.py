"""Where the files of a dataset lie in storage: everything made of an archive is in the archive's folder."""

from __future__ import annotations

FOLDER = "datasets"


def archive_key(folder_id: str) -> str:
    """A new archive; `folder_id` is unique, most often the id of the dataset."""
    return f"{FOLDER}/{folder_id}/archive"


def archive_of(key: str) -> str:
    """The archive in whose folder a file lies."""
    return "/".join([*key.split("/")[:2], "archive"])


def folder_of(archive: str) -> str:
    """The folder of an archive's files."""
    return archive.rpartition("/")[0]


def preview_key(archive: str, number: int) -> str:
    """The `number`th picture that was drawn of an archive, from 0."""
    return f"{folder_of(archive)}/preview/{number}.webp"
