"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sam3_lora.config import TrainingConfig

MAX_WARMUP_SHARE = 0.1  # of all steps, so that a short run is not all warm-up
INVERSE_SQRT_TIMESCALE = 20  # steps, as official training


def build_optimizer(
    adapters: Mapping[str, torch.nn.Parameter], config: TrainingConfig, *, loraplus_lr_ratio: float = 1.0
) -> torch.optim.AdamW:
    """Fused AdamW over the adapters by name, in two groups: A matrices, and B matrices at `loraplus_lr_ratio` times
    their learning rate.
    """
    b_matrices = [parameter for name, parameter in adapters.items() if name.endswith(".b")]
    a_matrices = [parameter for name, parameter in adapters.items() if not name.endswith(".b")]
    groups = [{"params": a_matrices, "lr_ratio": 1.0}, {"params": b_matrices, "lr_ratio": loraplus_lr_ratio}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True, betas=(0.9, 0.999)
    )


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Learning rate of optimiser step `step` (0-based) of `total_steps`."""
    peak = config.learning_rate
    warmup = min(config.warmup_steps, int(total_steps * MAX_WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    after = step - warmup
    if config.lr_scheduler == "constant":
        return peak
    if config.lr_scheduler == "inverse_sqrt":
        return peak * math.sqrt(INVERSE_SQRT_TIMESCALE / (INVERSE_SQRT_TIMESCALE + after))
    share = after / max(1, total_steps - warmup)
    if config.lr_scheduler == "linear":
        return peak * (1 - share)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of every group, times its `lr_ratio`."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_ratio"]
