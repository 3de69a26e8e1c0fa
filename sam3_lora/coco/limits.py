"""Resource limits of this process, for child processes that read files of strangers."""

from __future__ import annotations

import resource


def limit_process(*, memory_bytes: int, cpu_s: int) -> None:
    """Cap address space and processor time; lower caps that the system imposes stay."""
    _limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 5)  # SIGXCPU, and SIGKILL 5 s later
    _limit(resource.RLIMIT_CORE, 0, 0)


def _limit(kind: int, soft: int, hard: int) -> None:
    imposed = resource.getrlimit(kind)[1]
    if imposed != resource.RLIM_INFINITY:
        soft, hard = min(soft, imposed), min(hard, imposed)
    resource.setrlimit(kind, (soft, hard))
