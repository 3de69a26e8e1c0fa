"""One optimiser step: forward and backward of its micro-batches, clipping, the update."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sam3_lora.data.datapoint import to_device
from sam3_lora.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sam3.model.data_misc import BatchedDatapoint
    from torch import nn

    from sam3_lora.losses.sam3 import Sam3Loss

# Parts of the loss that are reported, by the official names.
REPORTED = ("loss_ce", "loss_bbox", "loss_giou", "presence_loss", "loss_mask", "loss_dice", "presence_dec_acc", "ce_f1")
_OOM_HINT = (
    "lower training.batch_size (and raise gradient_accumulation_steps to keep the effective batch), "
    "dataset.max_queries_per_image or dataset.resolution, or set lora.vision_layers"
)


@dataclass(frozen=True)
class StepResult:
    """Means over the micro-batches; `applied` is False where a value was not finite and nothing was changed."""

    values: dict[str, float]
    applied: bool


class Stepper:
    """Holds what every step needs: model, loss, optimiser, precision, scaler."""

    def __init__(
        self,
        model: nn.Module,
        loss: Sam3Loss,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        *,
        amp_dtype: torch.dtype | None,
        max_grad_norm: float,
    ) -> None:
        self.model, self.loss, self.optimizer, self.parameters = model, loss, optimizer, list(parameters)
        self.device = self.parameters[0].device
        self.amp_dtype, self.max_grad_norm = amp_dtype, max_grad_norm
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)

    def __call__(self, batches: Sequence[BatchedDatapoint]) -> StepResult:
        """Accumulate the mean gradient of `batches` and update once.

        Raises:
            OutOfMemoryError: naming what to lower.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        try:
            for batch in batches:
                for name, value in self._backward(to_device(batch, self.device), 1 / len(batches)).items():
                    sums[name] = sums.get(name, 0.0) + value / len(batches)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                self.optimizer.zero_grad(set_to_none=True)
                raise OutOfMemoryError("out of memory in a training step", hint=_OOM_HINT) from error
            raise
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        finite = math.isfinite(norm) and math.isfinite(sums["loss"])
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips by itself where it found infinities
            self.scaler.update()
        return StepResult({**sums, "grad_norm": norm}, finite)

    def _backward(self, batch: BatchedDatapoint, weight: float) -> dict[str, float]:
        with self._autocast():
            outputs = self.model(batch)
            total, parts = self.loss(outputs, batch, self.model)
        self.scaler.scale(total * weight).backward()
        return {"loss": float(total.detach()), **{name: float(parts[name]) for name in REPORTED if name in parts}}

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.amp_dtype is None else torch.autocast(self.device.type, dtype=self.amp_dtype)
