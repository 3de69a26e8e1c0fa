"""One optimiser step: forward and backward of its micro-batches, on all processes, clipping, the update."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sam3_lora.distributed import World
from sam3_lora.errors import OutOfMemoryError
from sam3_lora.losses.sam3 import Counts
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.memory import free_unused, ran_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from sam3_lora.data.datapoint import Batch
    from sam3_lora.losses.sam3 import Sam3Loss

log = logging.getLogger(__name__)
# Parts of the loss that are reported, by the official names.
REPORTED = ("loss_ce", "loss_bbox", "loss_giou", "presence_loss", "presence_dec_acc", "ce_f1")
REPORTED_WITH_MASKS = (*REPORTED, "loss_mask", "loss_dice")
_OOM_HINT = (
    "even a single query at a time does not fit: lower dataset.resolution or set lora.vision_layers, "
    "and turn training.activation_checkpointing on"
)


@dataclass(frozen=True)
class StepResult:
    """Means over the micro-batches; `applied` is False where a value was not finite and nothing was changed."""

    values: dict[str, float]
    applied: bool


class Stepper:
    """Holds what every step needs: model, loss, optimiser, precision, scaler.

    A micro-batch that does not fit into memory is computed in passes of fewer queries, whose gradients add up to the
    same sum; `most_queries` is how many fit (None: never too many yet).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Sam3Loss,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        *,
        amp_dtype: torch.dtype | None,
        max_grad_norm: float,
        world: World | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self.encoders = encoders or Encoders(model)
        self.model, self.loss, self.optimizer, self.parameters = model, loss, optimizer, list(parameters)
        self.device = self.parameters[0].device
        self.amp_dtype, self.max_grad_norm = amp_dtype, max_grad_norm
        self.world = world or World()
        self.most_queries: int | None = None
        self.reported = REPORTED_WITH_MASKS if loss.masks else REPORTED
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self.scaler.scale(torch.zeros((), device=self.device))  # a process may come to unscale before it scales a loss

    def __call__(self, batches: Sequence[Batch | None]) -> StepResult:
        """Accumulate the mean gradient of `batches` over all processes and update once.

        Args:
            batches: this process's share of each micro-batch; None where there were fewer images than processes.

        Raises:
            OutOfMemoryError: if not even single queries fit, naming what to lower.
        """
        wholes = self._count(batches)
        sums = self._accumulate(batches, wholes)
        while sums is None:  # outside the handler of the error, whose traceback would keep the memory
            self._use_smaller_passes(batches)
            sums = self._accumulate(batches, wholes)
        sums = self._add_up(sums)
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        finite = math.isfinite(norm) and math.isfinite(sums["loss"])
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips by itself where it found infinities
            self.scaler.update()
        return StepResult({**sums, "grad_norm": norm}, finite)

    def _count(self, batches: Sequence[Batch | None]) -> list[Counts]:
        """What each micro-batch holds on all processes together."""
        counts = [Counts(0, 0, 0) if batch is None else Counts.of(batch.datapoint) for batch in batches]
        table = torch.tensor([[c.queries, c.objects, c.masked_queries] for c in counts], dtype=torch.int64)
        return [Counts(*row) for row in self.world.add(table).tolist()]

    def _accumulate(self, batches: Sequence[Batch | None], wholes: Sequence[Counts]) -> dict[str, float] | None:
        """Backward through every micro-batch; returns sums of the reported values, None if memory ran out."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("loss", *self.reported), 0.0)
        try:
            for batch, whole in zip(batches, wholes, strict=True):
                for part in [] if batch is None else batch.split(self.most_queries or whole.queries):
                    values = self._backward(part.to(self.device), whole, 1 / len(batches))
                    for name, value in values.items():
                        sums[name] += value / len(batches)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None
        return sums

    def _use_smaller_passes(self, batches: Sequence[Batch | None]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        free_unused(self.device)
        tried = min(
            self.most_queries or math.inf,
            max(len(b.datapoint.find_inputs[0].img_ids) for b in batches if b is not None),
        )
        if tried <= 1:
            raise OutOfMemoryError("out of memory in a training step", hint=_OOM_HINT)
        self.most_queries = int(tried) // 2
        log.warning(
            "out of memory with %d queries in one pass: from now on passes of at most %d, with the same gradients",
            tried,
            self.most_queries,
        )

    def _backward(self, batch: Batch, whole: Counts, weight: float) -> dict[str, float]:
        data = batch.datapoint
        with self._autocast():
            images = self.encoders.images(data.img_batch, batch.views, batch.features)
            texts = self.encoders.texts(data.find_text_batch)
            total, parts = self.loss(self.model(data, {**images, **texts}), data, self.model, whole)
        self.scaler.scale(total * weight).backward()
        return {"loss": float(total.detach()), **{name: float(parts[name]) for name in self.reported}}

    def _add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum gradients and values over the processes, in one transfer.

        A parameter without a gradient in any process keeps none, as in a single process: AdamW must not move it.
        """
        if self.world.size == 1:
            return sums
        values = torch.tensor(list(sums.values()), device=self.device)
        has_gradient = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = self.world.add(torch.cat([values, has_gradient, *(g.flatten().float() for g in gradients)]))
        lengths = [len(values), len(has_gradient), *(g.numel() for g in gradients)]
        values, has_gradient, *summed = torch.split(flat, lengths)
        for parameter, gradient, present in zip(self.parameters, summed, has_gradient.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if present else None
        return dict(zip(sums, values.tolist(), strict=True))

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.amp_dtype is None else torch.autocast(self.device.type, dtype=self.amp_dtype)
