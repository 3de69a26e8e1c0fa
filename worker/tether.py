"""Become a command that dies with its parent: `python -m worker.tether [--expendable] -- COMMAND...`.

A small program put before a command's own, because the alternative (code between fork and exec) is unsafe in a
process with threads. It asks the kernel for SIGKILL when the parent thread ends, sets limits, and
replaces itself by the command: same process id, same pipes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
from pathlib import Path

from sam3_lora.parent import die_with_parent

MAX_OPEN_FILES = 65536
MAX_FILE_BYTES = 64 * 2**30  # several times the weights of any base
NOT_STARTED = 127  # the shell's status for a command that cannot be run


def command(target: list[str], *, expendable: bool = False) -> list[str]:
    """The command line that runs `target` tethered to the thread that spawns it.

    Args:
        expendable: make it the kernel's first victim when memory runs out, so that it dies and not its supervisor, and
            let no file of it grow beyond `MAX_FILE_BYTES`.
    """
    options = ["--expendable"] if expendable else []
    return [sys.executable, "-m", __name__, "--parent", str(os.getpid()), *options, "--", *target]


def main(arguments: list[str] | None = None) -> None:
    """Apply the ties and become the command; exits 127 if it cannot be run."""
    parser = argparse.ArgumentParser(prog="worker.tether", description="Run a command that dies with its parent.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--expendable", action="store_true", help="first to die without memory; no huge files")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    # A core dump of a trainer is tens of gigabytes that nobody asked for.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    if options.expendable:
        _, largest = resource.getrlimit(resource.RLIMIT_FSIZE)
        largest = MAX_FILE_BYTES if largest == resource.RLIM_INFINITY else min(largest, MAX_FILE_BYTES)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        with contextlib.suppress(OSError):  # not every container mounts it writable
            Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        os.execvp(options.command[0], options.command)  # noqa: S606  # no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {options.command[0]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
