"""Box prompts: some training queries also show one of their objects."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from sam3_lora.data.datapoint import Query

# What upstream asks where a box comes without words (facebookresearch/sam3@99d02f2 sam3_image_processor.py).
BOX_ALONE = "visual"
# People draw boxes inexactly: noise of a tenth of the side, at most 20 of 1024 pixels (arXiv 2304.02643, app. A).
NOISE_STD, NOISE_MAX = 0.1, 20 / 1024


def show_exemplars(
    queries: Sequence[Query], boxes_N4: Tensor, share: float, rng: np.random.Generator
) -> tuple[Query, ...]:
    """Give a share of the queries that have objects the box of one of them, half of these without their words.

    What is to be found stays: every object of the concept.

    Args:
        boxes_N4: cxcywh in [0, 1] of the network input.
    """
    shown = []
    for query in queries:
        if query.objects and rng.random() < share:
            box = boxes_N4[int(rng.choice(query.objects))].double().numpy()
            text = query.text if rng.random() < 0.5 else BOX_ALONE
            query = replace(query, text=text, exemplar_box=_inexact(box, rng))
        shown.append(query)
    return tuple(shown)


def _inexact(box: np.ndarray, rng: np.random.Generator) -> tuple[float, ...]:
    """A cxcywh box with noise on its corners, inside the image and not turned inside out."""
    centre, size = box[:2], box[2:]
    noise = np.clip(rng.normal(0, NOISE_STD, (2, 2)) * size, -NOISE_MAX, NOISE_MAX)
    corners = np.clip(np.stack([centre - size / 2, centre + size / 2]) + noise, 0, 1)
    low, high = corners.min(0), corners.max(0)
    if (high - low <= 0).any():
        return tuple(float(v) for v in box)
    return tuple(float(v) for v in (*(low + high) / 2, *(high - low)))
