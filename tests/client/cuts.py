"""A bad network: passes bytes on between a client and a server, and cuts connections wherever the dice say."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 4096
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closed at once, with a reset


class BadNetwork:
    """A port that leads to the server; `budget` says how many bytes a new connection lives for (None: all)."""

    def __init__(self, server: tuple[str, int], budget: Callable[[], int | None]) -> None:
        self._server, self._budget = server, budget
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        """Connections that were cut."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._server)
                except OSError:  # it is gone
                    client.close()
                else:
                    _Connection(self, client, server, self._budget())


class _Connection:
    def __init__(self, network: BadNetwork, client: socket.socket, server: socket.socket, budget: int | None) -> None:
        self._network, self._both, self._left = network, (client, server), budget
        self._lock = threading.Lock()
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(CHUNK_BYTES):
                with self._lock:
                    allowed = len(content) if self._left is None else min(len(content), self._left)
                    self._left = None if self._left is None else self._left - allowed
                target.sendall(content[:allowed])
                if allowed < len(content):
                    self._network.cut += 1
                    break
        for end in self._both:
            with contextlib.suppress(OSError):  # its other side may be gone
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def bad_network(server: tuple[str, int], budget: Callable[[], int | None]) -> Iterator[BadNetwork]:
    network = BadNetwork(server, budget)
    try:
        yield network
    finally:
        network.close()


def dice(seed: int, *, least: int = 300, most: int = 400_000) -> Callable[[], int]:
    """As many short lives as long ones."""
    random_ = random.Random(seed)
    return lambda: int(least * (most / least) ** random_.random())
