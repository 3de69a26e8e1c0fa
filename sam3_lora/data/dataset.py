"""COCO images as training samples. Everything random depends on (seed, epoch, image) alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from sam3_lora.coco.schema import CocoDataset
from sam3_lora.data.concepts import Concept, training_queries
from sam3_lora.data.datapoint import Query, Sample
from sam3_lora.data.exemplars import show_exemplars
from sam3_lora.data.images import read_rgb
from sam3_lora.data.transforms import (
    draw_colour,
    draw_placement,
    place_boxes,
    place_image,
    place_masks,
    recolour,
    view_name,
    whole,
)
from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from numpy.typing import NDArray

    from sam3_lora.coco.report import Id
    from sam3_lora.coco.schema import Annotation, ImageRecord
    from sam3_lora.config import DatasetOptions
    from sam3_lora.data.transforms import Placement
    from sam3_lora.model.features import FeatureStore

log = logging.getLogger(__name__)
QUERIES = 1  # tells the random numbers of queries from those of views


class TrainingSet(Dataset[Sample]):
    """Training samples of a COCO dataset, indexed by (epoch, position).

    The epoch is part of the index, so that loader processes need no shared state. Images that can never
    give a query (nothing annotated where negatives are off, say) are left out.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        folder: Path,
        concepts: Sequence[Concept],
        options: DatasetOptions,
        *,
        resolution: int,
        masks: bool,
        seed: int,
    ) -> None:
        self.folder, self.concepts, self.options = folder, tuple(concepts), options
        self.resolution, self.masks, self.seed = resolution, masks, seed
        self.absent_words: Mapping[int, tuple[str, ...]] = {}  # by position; set before samples are drawn
        self.features: FeatureStore | None = None  # set where images come again and what is made of them is kept
        self.entries: list[tuple[ImageRecord, tuple[Annotation, ...], frozenset[Id]]] = []
        for image in dataset.images.values():
            annotations = dataset.annotations_of(image.id)
            kept = self._trainable(image, annotations)
            annotated = frozenset(a.category_id for a in annotations)
            refusable = options.exhaustive and options.negatives_per_image > 0
            if kept or (refusable and any(annotated.isdisjoint(c.category_ids) for c in self.concepts)):
                self.entries.append((image, kept, annotated))
        if not self.entries:
            raise DatasetError(
                "no image of the training set gives anything to train on",
                hint="annotate at least one object, or allow negatives (exhaustive: true)",
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        epoch, position = index
        image, annotations, annotated = self.entries[position]
        views = self.options.augmented_views
        view_rng = np.random.default_rng([self.seed, epoch if views is None else epoch % views, position])
        colour = draw_colour(view_rng, self.options.color_jitter)
        placement = draw_placement(view_rng, self.options, self.resolution)
        rng = np.random.default_rng([self.seed, epoch, position, QUERIES])
        size_HW = (image.height, image.width)
        boxes = place_boxes(annotations, size_HW, placement)
        visible = (boxes[:, 2:] * self.resolution >= 1).all(1)
        if not visible.all():  # an object of less than a pixel would be taught as absent
            placement = whole(self.resolution)
            boxes = place_boxes(annotations, size_HW, placement)
        queries = training_queries(
            self.concepts,
            kept=[a.category_id for a in annotations],
            annotated=annotated,
            options=self.options,
            rng=rng,
        )
        queries += self._generic_negatives(position, len(queries), rng)
        if self.options.box_prompts > 0:
            queries = show_exemplars(queries, boxes, self.options.box_prompts, rng)
        view, features, needed = None, None, True
        if self.features is not None:
            view = self._name(position, placement, colour)
            features = self.features.load(view)
            needed = features is None and not self.features.holds(view)
        unread = torch.zeros(1).expand(3, self.resolution, self.resolution)
        return Sample(
            image_CHW=place_image(recolour(self.read(position), colour), placement) if needed else unread,
            boxes_N4=boxes,
            masks_NHW=place_masks(annotations, size_HW, placement) if self.masks else None,
            queries=queries,
            image_id=position,
            original_size=size_HW,
            view=view,
            features=features,
        )

    @property
    def views_repeat(self) -> bool:
        """Whether an image looks the same again in a later epoch."""
        options = self.options
        changes = options.min_scale < 1 or options.horizontal_flip > 0 or options.color_jitter > 0
        return not changes or options.augmented_views is not None

    def name_whole(self, position: int) -> str:
        """Names the view of an image that is squashed to the full square and nothing else."""
        return self._name(position, whole(self.resolution), ())

    def _name(self, position: int, placement: Placement, colour: tuple[float, ...]) -> str:
        file = self.folder / self.entries[position][0].file_name
        return view_name(file, placement, colour=colour, transparent_color=self.options.transparent_color)

    def read(self, position: int) -> NDArray[np.uint8]:
        """The image as it is on disk, 8-bit RGB (H, W, 3).

        Raises:
            DatasetError: if it cannot be read.
        """
        image = self.entries[position][0]
        return read_rgb(
            self.folder / image.file_name,
            transparent_color=self.options.transparent_color,
            size=(image.width, image.height),
        )

    def _generic_negatives(self, position: int, asked: int, rng: np.random.Generator) -> tuple[Query, ...]:
        words = self.absent_words.get(position, ())
        count = min(self.options.generic_negatives, len(words), self.options.max_queries_per_image - asked)
        if count <= 0:
            return ()
        return tuple(Query(words[i], ()) for i in rng.choice(len(words), count, replace=False))

    def _trainable(self, image: ImageRecord, annotations: Sequence[Annotation]) -> tuple[Annotation, ...]:
        """Annotations that can be targets: no crowds, at least a pixel at full size, not too many of a category."""
        candidates = [a for a in annotations if not a.is_crowd]
        if not candidates:
            return ()
        boxes = place_boxes(candidates, (image.height, image.width), whole(self.resolution))
        large = [a for a, box in zip(candidates, boxes, strict=True) if (box[2:] * self.resolution >= 1).all()]
        kept: list[Annotation] = []
        for category in dict.fromkeys(a.category_id for a in large):
            group = sorted((a for a in large if a.category_id == category), key=lambda a: -a.bbox[2] * a.bbox[3])
            if len(group) > self.options.max_ann_per_img:
                log.warning(
                    "%s has %d objects of category %s; the %d largest are used",
                    image.file_name,
                    len(group),
                    category,
                    self.options.max_ann_per_img,
                )
            kept.extend(group[: self.options.max_ann_per_img])
        return tuple(kept)


def epoch_batches(
    count: int, batch_size: int, *, seed: int, epoch: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Index batches of one epoch in random order, from its `start`-th image on.

    The last may be smaller, none is dropped.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for first in range(start, count, batch_size):
        yield [(epoch, int(position)) for position in order[first : first + batch_size]]


def split_off_validation(dataset: CocoDataset, fraction: float, seed: int) -> tuple[CocoDataset, CocoDataset]:
    """A seeded split by images into training and validation, at least one image in each.

    Raises:
        DatasetError: if there are fewer than two images.
    """
    if len(dataset.images) < 2:
        raise DatasetError(
            "one image cannot be split into training and validation",
            hint="add images, give a validation set, or set dataset.val_fraction: 0",
        )
    ids = list(dataset.images)
    order = np.random.default_rng(seed).permutation(len(ids))
    count = min(len(ids) - 1, max(1, round(fraction * len(ids))))
    held_out = {ids[i] for i in order[:count]}
    return subset(dataset, set(ids) - held_out), subset(dataset, held_out)


def subset(dataset: CocoDataset, image_ids: AbstractSet[Id]) -> CocoDataset:
    """The dataset with only these images and their annotations; all categories stay."""
    return CocoDataset(
        dataset.categories,
        {key: image for key, image in dataset.images.items() if key in image_ids},
        [annotation for annotation in dataset.annotations if annotation.image_id in image_ids],
    )
