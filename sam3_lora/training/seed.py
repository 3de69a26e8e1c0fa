"""Randomness of a run: everything follows from the seed, and no generator's state needs saving.

Data are drawn from (seed, epoch, image), and what is random within a step (dropout, sampled mask points) from
(seed, step, rank): a run that is resumed draws what the uninterrupted one would.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(seed: int, *step_and_rank: int) -> None:
    """Seed every generator that upstream code may draw from."""
    value = int(np.random.SeedSequence([seed, *step_and_rank]).generate_state(1)[0]) if step_and_rank else seed
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002  (upstream code may draw from the global generator)
    torch.manual_seed(value)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Have torch choose algorithms that give the same bits in every run, inside the block.

    CPU runs are so anyway. On CUDA the sampling of mask points has no such algorithm and warns.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
