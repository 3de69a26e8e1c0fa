"""Under which names a run keeps the samples that it drew, at its end and after its epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.shared.db.models import Artifact

EPOCHS_PLACE = "epoch_samples"
INDEX = "index.json"


def samples_place(epoch: int | None) -> str:
    """Folder of the samples of an epoch, or of those at the end of the run (None)."""
    return "samples" if epoch is None else f"{EPOCHS_PLACE}/{epoch}"


def epochs_drawn(indexes: Iterable[Artifact]) -> list[int]:
    """Epochs, ascending, that have an `INDEX` below `EPOCHS_PLACE`."""
    return sorted(int(index.name.split("/")[1]) for index in indexes)
