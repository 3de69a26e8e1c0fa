"""What the base model is sure not to see: words that a tuned model should go on denying.

A dataset of few categories has few negatives, one of a single category none, and a model that is only shown what is
there learns to find it everywhere. Words from outside the dataset are a remedy only if they are truly absent, which
nobody has checked. The base model can: what it finds no trace of, the tuned model may be told is not there, since that
is what the base would have said itself (the idea of Learning without Forgetting, arXiv 1606.09282).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sam3_lora.data.vocabulary import everyday_words
from sam3_lora.evaluation.probe import not_in_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from sam3_lora.data.dataset import TrainingSet
    from sam3_lora.distributed import World
    from sam3_lora.evaluation.predict import Predictor

CANDIDATES = 8  # words that the base is asked for each image
TRACE = 0.1  # a detection of this score is a trace
MOST_IMAGES = 2000  # that the base is asked about; the others of a larger set get no such words


def find_absent_words(
    base: Predictor,
    images: TrainingSet,
    *,
    seed: int,
    world: World,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> dict[int, tuple[str, ...]]:
    """For each image, by its position in `images`, everyday words of which the base model finds no trace in it.

    Args:
        base: the model without adapters.
        on_image: called after each image with (done, total); may raise to stop.
    """
    candidates = not_in_dataset(everyday_words(), images.concepts)
    positions = np.random.default_rng([seed, len(images)]).permutation(len(images))[:MOST_IMAGES].tolist()
    own: dict[int, tuple[str, ...]] = {}
    for number, done in world.share(len(positions)):
        if number is not None:
            position = positions[number]
            drawn = np.random.default_rng([seed, position]).choice(len(candidates), CANDIDATES, replace=False)
            asked = [candidates[i] for i in drawn]
            image = base.encode(images.read(position), partial(images.name_whole, position))
            found = base.ask(image, asked, min_score=TRACE)
            own[position] = tuple(w for w, d in zip(asked, found, strict=True) if not len(d.scores_K))
        on_image(done, len(positions))
    return {position: kept for part in world.gather(own) for position, kept in part.items()}
