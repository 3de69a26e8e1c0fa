"""From COCO categories to what is asked of the model: one concept per distinct text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sam3_lora.data.datapoint import Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from sam3_lora.coco.report import Id
    from sam3_lora.coco.schema import CocoDataset
    from sam3_lora.config import DatasetOptions


@dataclass(frozen=True)
class Concept:
    """Categories that are asked with the same text. Two categories named alike are one concept."""

    number: int  # 1-based; predictions carry it, since category ids may be texts
    name: str
    texts: tuple[str, ...]  # the first is used in evaluation
    category_ids: tuple[Id, ...]


def default_text(category_name: str) -> str:
    """The prompt of a category without an explicit one: its name with `_` and `-` as spaces."""
    return " ".join(category_name.replace("_", " ").replace("-", " ").split())


def find_concepts(dataset: CocoDataset, prompts: Mapping[str, Sequence[str]]) -> list[Concept]:
    """Concepts of a dataset in its order; categories that share a text (any case) are merged."""
    merged: list[tuple[list[str], list[Id], str]] = []  # texts, category ids, name
    for category in dataset.categories.values():
        texts = [" ".join(text.split()) for text in prompts.get(category.name, [default_text(category.name)])]
        keys = {text.casefold() for text in texts}
        for known_texts, ids, _ in merged:
            known_keys = {text.casefold() for text in known_texts}
            if known_keys & keys:
                known_texts.extend(text for text in texts if text.casefold() not in known_keys)
                ids.append(category.id)
                break
        else:
            merged.append((list(dict.fromkeys(texts)), [category.id], category.name))
    return [Concept(n, name, tuple(texts), tuple(ids)) for n, (texts, ids, name) in enumerate(merged, start=1)]


def shared_concepts(dataset: CocoDataset, prompts: Sequence[Mapping[str, str]]) -> list[list[Concept]]:
    """The same concepts as each of several models is asked for them, in the order of `prompts`.

    Categories are one concept only where every model is asked for them with the same text (any case).

    Args:
        prompts: for each model, category name -> text; a category without one is asked by its name.
    """
    merged: dict[tuple[str, ...], tuple[list[str], list[Id], str]] = {}  # texts of the models, category ids, name
    for category in dataset.categories.values():
        wanted = [each.get(category.name, default_text(category.name)) for each in prompts]
        texts = [" ".join(text.split()) for text in wanted]
        _, ids, _ = merged.setdefault(tuple(text.casefold() for text in texts), (texts, [], category.name))
        ids.append(category.id)
    return [
        [Concept(n, name, (texts[model],), tuple(ids)) for n, (texts, ids, name) in enumerate(merged.values(), start=1)]
        for model in range(len(prompts))
    ]


def training_queries(
    concepts: Sequence[Concept],
    *,
    kept: Sequence[Id],
    annotated: AbstractSet[Id],
    options: DatasetOptions,
    rng: np.random.Generator,
) -> tuple[Query, ...]:
    """Queries of one training image: all concepts with objects, then sampled absent ones.

    Args:
        kept: category id of each object that survived the transforms, in order.
        annotated: category ids of all annotations of the image, crowds and lost objects included. A concept
            that is annotated but has no kept object is not asked: "absent" would be a lie.
    """
    positives, absent = [], []
    for concept in concepts:
        objects = tuple(i for i, category in enumerate(kept) if category in concept.category_ids)
        if objects:
            text = concept.texts[int(rng.integers(len(concept.texts)))]
            positives.append(Query(text, objects, concept.number, exhaustive=options.exhaustive))
        elif annotated.isdisjoint(concept.category_ids):
            absent.append(concept)
    if len(positives) > options.max_queries_per_image:
        chosen = sorted(rng.choice(len(positives), options.max_queries_per_image, replace=False))
        positives = [positives[i] for i in chosen]
    room = options.max_queries_per_image - len(positives)
    count = min(options.negatives_per_image, room, len(absent)) if options.exhaustive else 0
    refused = [absent[i] for i in sorted(rng.choice(len(absent), count, replace=False))] if count else []
    negatives = [Query(c.texts[int(rng.integers(len(c.texts)))], (), c.number) for c in refused]
    return tuple(positives + negatives)
