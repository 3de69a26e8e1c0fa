"""Build sam3's `Datapoint` from tensors, and batches of them with sam3's own collator.

Shapes: C channels, H and W pixels of the network input, N objects of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sam3.model.data_misc import BatchedDatapoint, BatchedFindTarget
    from sam3.train.data.sam3_image_dataset import Datapoint


@dataclass(frozen=True)
class Query:
    """One text prompt on one image, with the objects it should find (none: a negative)."""

    text: str
    objects: tuple[int, ...]  # positions in the image's kept objects
    category_id: int = 0
    exhaustive: bool = True
    exemplar_box: tuple[float, ...] | None = None  # cxcywh in [0, 1]: one of the objects, shown beside the text


@dataclass(frozen=True)
class Sample:
    """One network-ready image with its objects and queries."""

    image_CHW: Tensor  # normalised float
    boxes_N4: Tensor  # cxcywh in [0, 1] of the network input
    masks_NHW: Tensor | None  # bool; a row without any True marks an object that has only a box
    queries: tuple[Query, ...]
    image_id: int = 0
    original_size: tuple[int, int] = (0, 0)  # height, width
    view: str | None = None  # names the file and how it was placed and coloured, where that may come again
    features: Tensor | None = None  # what was kept of the view, where the loader could have it


@dataclass(frozen=True)
class Batch:
    """A collated batch, the views of its images, and what the loader could have of their features (empty: nothing)."""

    datapoint: BatchedDatapoint
    views: tuple[str | None, ...]
    features: tuple[Tensor | None, ...] = ()

    @classmethod
    def of(cls, samples: list[Sample], *, masks: bool) -> Batch:
        views, features = tuple(s.view for s in samples), tuple(s.features for s in samples)
        return cls(collate(samples, masks=masks), views, features)

    def split(self, most_queries: int) -> Iterator[Batch]:
        """Parts with at most so many queries each, in order, and only the images that they ask about."""
        if len(self.datapoint.find_inputs[0].img_ids) <= most_queries:
            yield self
            return
        for part, images in _split(self.datapoint, most_queries):
            features = tuple(self.features[i] for i in images) if self.features else ()
            yield Batch(part, tuple(self.views[i] for i in images), features)

    def to(self, device: torch.device) -> Batch:
        from sam3.model.utils.misc import copy_data_to_device

        features = tuple(None if f is None else f.to(device, non_blocking=True) for f in self.features)
        return Batch(copy_data_to_device(self.datapoint, device, non_blocking=True), self.views, features)

    def pin_memory(self) -> Batch:
        """For transfers that the GPU does by itself; called by the data loader."""
        features = tuple(None if f is None else f.pin_memory() for f in self.features)
        return Batch(_pinned(self.datapoint), self.views, features)


def normalise(pixels_HWC: Tensor) -> Tensor:
    """8-bit RGB (H, W, 3) to float (3, H, W) with mean = std = 0.5, as SAM3 expects."""
    return pixels_HWC.permute(2, 0, 1).float().div(127.5).sub(1.0)


def to_datapoint(sample: Sample) -> Datapoint:
    """Translate to sam3's classes; object ids are positions in the kept list."""
    from sam3.train.data.sam3_image_dataset import Datapoint, FindQueryLoaded, Image, InferenceMetadata, Object

    height, width = sample.image_CHW.shape[-2:]
    objects = []
    for index, box in enumerate(sample.boxes_N4):
        mask = sample.masks_NHW[index] if sample.masks_NHW is not None else None
        if mask is not None and not mask.any():
            mask = None
        objects.append(Object(bbox=box, area=float(box[2] * box[3]), object_id=index, frame_index=0, segment=mask))
    queries = [
        FindQueryLoaded(
            query_text=query.text,
            image_id=0,
            object_ids_output=list(query.objects),
            is_exhaustive=query.exhaustive,
            query_processing_order=0,
            input_bbox=None if query.exemplar_box is None else torch.tensor([query.exemplar_box]),
            input_bbox_label=None if query.exemplar_box is None else torch.ones(1, dtype=torch.bool),
            inference_metadata=InferenceMetadata(
                coco_image_id=sample.image_id,
                original_image_id=sample.image_id,
                original_category_id=query.category_id,
                original_size=sample.original_size,
                object_id=0,
                frame_index=0,
            ),
        )
        for query in sample.queries
    ]
    return Datapoint(find_queries=queries, images=[Image(sample.image_CHW, objects, (height, width))])


def collate(samples: list[Sample], *, masks: bool) -> BatchedDatapoint:
    """One batch; its model batch size is the total number of queries, not of images."""
    from sam3.train.data.collator import collate_fn_api

    batch: BatchedDatapoint = collate_fn_api(
        [to_datapoint(s) for s in samples], dict_key="batch", with_seg_masks=masks
    )["batch"]
    for target in batch.find_targets:
        if target.segments is None:
            continue
        if target.segments.dim() != 3:
            # Without a single object the collator leaves no mask shape, and the sampled mask loss asserts one.
            target.segments = target.segments.new_zeros((0, *batch.img_batch.shape[-2:]))
        elif not target.is_valid_segment.all():
            target.semantic_segments = _complete_unions(target)
    return batch


def _complete_unions(target: BatchedFindTarget) -> Tensor:
    """For each query the union of its objects' masks (Q, H, W); empty, which the semantic loss leaves out, where an
    object has only a box: the union of the others would teach that its pixels are background.
    """
    counts = target.num_boxes.tolist()
    unions: Tensor = target.segments.new_zeros((len(counts), *target.segments.shape[-2:]))
    queries = zip(target.segments.split(counts), target.is_valid_segment.split(counts), strict=True)
    for union, (masks, valid) in zip(unions, queries, strict=True):
        if len(masks) and valid.all():
            torch.any(masks, 0, out=union)
    return unions


def _split(batch: BatchedDatapoint, most_queries: int) -> Iterator[tuple[BatchedDatapoint, list[int]]]:
    """Parts of a batch, each with the positions of its images in the whole."""
    stage, target = batch.find_inputs[0], batch.find_targets[0]
    total = len(stage.img_ids)
    ends = target.num_boxes.cumsum(0).tolist()
    for first in range(0, total, most_queries):
        queries = slice(first, min(first + most_queries, total))
        objects = slice(ends[first - 1] if first else 0, ends[queries.stop - 1])
        images, img_ids = stage.img_ids[queries].unique(return_inverse=True)
        part = replace(
            batch,
            img_batch=batch.img_batch[images],
            find_inputs=[
                replace(
                    stage,
                    img_ids=img_ids,
                    text_ids=stage.text_ids[queries],
                    input_boxes=stage.input_boxes[:, queries],
                    input_boxes_mask=stage.input_boxes_mask[queries],
                    input_boxes_label=stage.input_boxes_label[:, queries],
                    input_points=stage.input_points[queries],
                    input_points_mask=stage.input_points_mask[queries],
                    object_ids=stage.object_ids[queries],
                )
            ],
            find_targets=[
                replace(
                    target,
                    num_boxes=target.num_boxes[queries],
                    boxes=target.boxes[objects],
                    boxes_padded=target.boxes_padded[queries],
                    segments=None if target.segments is None else target.segments[objects],
                    semantic_segments=target.semantic_segments[queries],  # often empty: nothing to slice
                    is_valid_segment=None if target.is_valid_segment is None else target.is_valid_segment[objects],
                    is_exhaustive=target.is_exhaustive[queries],
                    object_ids=target.object_ids[objects],
                    object_ids_padded=target.object_ids_padded[queries],
                )
            ],
            find_metadatas=[],  # for upstream's evaluators, which see no parts
        )
        yield part, images.tolist()


def _pinned(value: Any) -> Any:
    """A copy of nested dataclasses and lists with every tensor in pinned memory."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, list):
        return [_pinned(item) for item in value]
    if is_dataclass(value):
        return replace(value, **{field.name: _pinned(getattr(value, field.name)) for field in fields(value)})  # type: ignore[type-var]
    return value
