"""Small real models and batches for the tests of the training library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sam3_lora.data.datapoint import Query, Sample, collate, normalise
from sam3_lora.model.architecture import SAM3_TINY
from sam3_lora.model.build import build_model
from sam3_lora.model.lean import MaskLogits
from sam3_lora.synthetic.scenes import draw_scene

MICRO = replace(SAM3_TINY, vit_width=32, vit_heads=2, text_width=16, d_model=32, heads=2, ffn=64, queries=8)
OUTPUTS = ("pred_logits", "pred_boxes", "pred_masks", "presence_logit_dec")


def micro_model(seed: int = 0) -> nn.Module:
    """A SAM3 model of about a million parameters with random weights, in train mode."""
    torch.manual_seed(seed)
    return build_model(MICRO, recomputed="off").train()


def scene_sample(seed: int, *, negatives: bool = True, positives: bool = True) -> Sample:
    """A drawn scene with one query per shape in it and one absent shape."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, shapes=["circle", "square"], count=(1, 3))
    boxes = torch.tensor([item.box_xyxy for item in scene.objects]) / scene.pixels.shape[0]
    queries = []
    for shape in ("circle", "square"):
        found = tuple(i for i, item in enumerate(scene.objects) if item.shape == shape)
        if found and positives:
            queries.append(Query(shape, found))
    if negatives:
        queries.append(Query("star", ()))
    return Sample(
        image_CHW=normalise(torch.from_numpy(scene.pixels)),
        boxes_N4=torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        masks_NHW=torch.from_numpy(np.stack([item.mask for item in scene.objects])),
        queries=tuple(queries),
    )


def mixed_batch(images: int = 2, seed: int = 0) -> object:
    """A batch with positive and negative queries."""
    return collate([scene_sample(seed + i) for i in range(images)], masks=True)


def outputs_of(model: nn.Module, batch: object) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        final = model(batch)[-1]
    masks = final["pred_masks"]
    if isinstance(masks, MaskLogits):  # a model in train mode
        final["pred_masks"] = torch.einsum("bqc,bchw->bqhw", masks.queries_BQC, masks.pixels_BCHW)
    return {name: final[name] for name in OUTPUTS}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in OUTPUTS)
