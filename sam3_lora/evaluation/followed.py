"""A few images that are looked at after every epoch, always the same: how the model comes to see them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sam3_lora.evaluation.exported import load
from sam3_lora.evaluation.samples import write_samples
from sam3_lora.evaluation.worst_images import image_row, worst_first

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sam3_lora.evaluation.exported import EvaluatedModel


class FollowedImages:
    """Of the images with objects, those that the base does worst on, worst first; without a base, the fullest ones.

    Chosen from what was exported of the first evaluation, so that a run that goes on follows the same ones.
    """

    def __init__(self, images: Path, *, base: Path, limit: int, transparent_color: Sequence[int]) -> None:
        """Choose nothing yet.

        Args:
            images: folder that the truth's `file_name`s are relative to.
            base: folder with what was exported of the base model; it may not be there.
            limit: most images to follow.
        """
        self._images, self._base_folder = images, base
        self._limit, self._transparent_color = limit, transparent_color
        self._chosen: list[int] = []
        self._base: EvaluatedModel | None = None

    def draw(self, tuned: Path, output: Path) -> None:
        """Write the images with what a model finds in them into a folder, as `evaluation.samples` does.

        Args:
            tuned: folder with what was exported of the model.

        Raises:
            OSError: if a file is missing or cannot be written.
            ValueError, KeyError: if one is not what was exported.
        """
        found = load(tuned)
        if not self._chosen:
            self._choose(found)
        model = found.only(self._chosen)
        models = {"tuned": model} if self._base is None else {"base": self._base, "tuned": model}
        records = {image["id"]: image for image in model.truth["images"]}
        rows = [image_row(models, records[each], self._images, self._transparent_color) for each in self._chosen]
        write_samples(rows, output)

    def _choose(self, tuned: EvaluatedModel) -> None:
        base = load(self._base_folder) if (self._base_folder / "evaluation.json").exists() else None
        if base is not None and base.truth != tuned.truth:
            base = None
        objects = Counter(entry["image_id"] for entry in tuned.truth["annotations"] if not entry["iscrowd"])
        fullest = sorted(tuned.truth["images"], key=lambda image: (-objects[image["id"]], image["id"]))
        ordered = fullest if base is None else worst_first(base)
        with_objects = [image["id"] for image in ordered if objects[image["id"]]]
        self._chosen = (with_objects or [image["id"] for image in ordered])[: self._limit]
        self._base = None if base is None else base.only(self._chosen)
