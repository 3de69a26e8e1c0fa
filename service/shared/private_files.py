"""Files that belong to the user a process runs as, and to nobody else."""

from __future__ import annotations

import os

OWNER_ONLY = 0o077  # a umask


def keep_private() -> None:
    """Have this process and its children make files and folders that only their user can open.

    The data folder shuts others out only where the service has made it: one that was there before, such as a mounted
    volume, is often open to all.
    """
    os.umask(OWNER_ONLY)
