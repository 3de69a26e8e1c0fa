"""The batches of a run from where it stands: in which order, this process's share of each, loaded ahead."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from sam3_lora.data.datapoint import Batch, Sample
from sam3_lora.data.dataset import TrainingSet, epoch_batches
from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sam3_lora.config import TrainingConfig
    from sam3_lora.distributed import World

MAX_TEMPORARY_PATH = 60  # bytes; what multiprocessing appends takes up to 45


class Batches:
    """Micro-batches of `batch_size` images for each process, divided among the processes.

    The order of an epoch's images depends on (seed, epoch) alone, and a run's place in it is a number of images:
    so another number of processes goes on where this one stopped.
    """

    def __init__(self, images: TrainingSet, config: TrainingConfig, world: World, *, masks: bool) -> None:
        self.images, self.config, self.world, self.masks = images, config, world, masks
        self.size = config.batch_size * world.size  # images of one micro-batch on all processes

    def left(self, images_done: int) -> int:
        """Micro-batches of an epoch after its first `images_done` images."""
        return -(-(len(self.images) - images_done) // self.size)

    def steps_left(self, epoch: int, images_done: int) -> int:
        """Optimiser steps from a place in the run to its last epoch's end."""
        accumulation = self.config.gradient_accumulation_steps
        in_whole_epochs = -(-self.left(0) // accumulation) * (self.config.max_epochs - epoch - 1)
        return max(0, -(-self.left(images_done) // accumulation) + in_whole_epochs)

    def load(self, epoch: int, images_done: int, *, pin_memory: bool) -> Generator[Batch | None, None, None]:
        """This process's share of every batch from a place in the run on; loader processes work on across epochs.

        None where a last batch has fewer images than there are processes.

        Raises:
            DatasetError: if an image cannot be read.
        """
        if self.config.num_workers > 0:
            _use_short_temporary_folder()
        loader = DataLoader(
            self.images,
            batch_sampler=list(self._indices(epoch, images_done)),
            num_workers=self.config.num_workers,
            collate_fn=partial(_collate_share, masks=self.masks),
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator().manual_seed(self.config.seed),  # leaves the global generator alone
        )
        iterator = iter(loader)
        while True:
            try:
                yield next(iterator)
            except DatasetError as error:  # from a loader process: its text ends with the original message
                raise DatasetError(
                    str(error).strip().splitlines()[-1].partition("DatasetError: ")[2] or str(error)
                ) from error

    def _indices(self, epoch: int, images_done: int) -> Iterator[list[tuple[int, int]]]:
        for number in range(epoch, self.config.max_epochs):
            start = images_done if number == epoch else 0
            for batch in epoch_batches(len(self.images), self.size, seed=self.config.seed, epoch=number, start=start):
                # Shares differ by one image at most; nothing is repeated to fill up the last batch.
                bounds = np.linspace(0, len(batch), self.world.size + 1).round().astype(int)
                yield batch[bounds[self.world.rank] : bounds[self.world.rank + 1]]


def _collate_share(samples: list[Sample], *, masks: bool) -> Batch | None:
    return Batch.of(samples, masks=masks) if samples else None


def _use_short_temporary_folder() -> None:
    """Loader processes pass tensors over unix sockets in the temporary folder, whose path the kernel cuts off at 107
    bytes: with a longer one (a job's workspace, say) their batches would never arrive and the run would hang.
    """
    if len(tempfile.gettempdir()) > MAX_TEMPORARY_PATH:
        tempfile.tempdir = tempfile.mkdtemp(prefix="sam3-", dir="/tmp")
        atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Loader processes ignore a terminal's Ctrl-C, which is meant for the run, and end by SIGTERM as usual."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
