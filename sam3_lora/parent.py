"""Ending with a parent process, by the kernel's hand (PR_SET_PDEATHSIG, prctl(2)): also when that is killed."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
EXIT_ORPHAN = 127


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with the thread that spawned it; at once if that is already gone."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)
