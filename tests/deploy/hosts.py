"""Two hosts on one machine: this one, and a network namespace that shares nothing with it but a cable."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Where only /tmp and $1 can be written and $2 is empty, with no process but its own, and no capabilities.
ALONE = """
set -e
mount --bind /tmp /tmp
mount --bind "$1" "$1"
mount -t tmpfs none "$2"
mount -o remount,bind,ro /
shift 2
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


@dataclass(frozen=True)
class Hosts:
    """`address`: of this host, as both see it. `namespace`: the other one's; None where the system allows none."""

    address: str
    namespace: str | None

    def elsewhere(self, data_dir: Path, hidden: Path, command: list[str]) -> list[str]:
        """The command on the other host, as the first process of a system with a read-only disk."""
        if self.namespace is None:
            return command
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [
            "ip",
            "netns",
            "exec",
            self.namespace,
            *alone,
            "sh",
            "-c",
            ALONE,
            "sh",
            str(data_dir),
            str(hidden),
            *command,
        ]


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Both, wired; where namespaces are not permitted only this one, on a loopback address of its own."""
    name, network = f"sam3{secrets.token_hex(3)}", f"10.213.{secrets.randbelow(256)}"
    steps = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add {network}.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add {network}.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
        f"ip -n {name} link set lo up",
        f"ip netns exec {name} unshare --mount --pid --fork --mount-proc setpriv --no-new-privs true",
    ]
    try:
        permitted = os.geteuid() == 0 and shutil.which("ip") is not None
        if permitted and all(_succeeds(step) for step in steps):
            yield Hosts(f"{network}.1", name)
        else:
            yield Hosts(f"127.213.{secrets.randbelow(256)}.1", None)
    finally:
        if permitted:
            _succeeds(f"ip link del {name}a")
            _succeeds(f"ip netns del {name}")


def _succeeds(command: str) -> bool:
    return subprocess.run(command.split(), capture_output=True, check=False).returncode == 0
