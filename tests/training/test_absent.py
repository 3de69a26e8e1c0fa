"""Words that the base model confirms to be absent are asked as negatives, and only those."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sam3_lora.config import ABSENT_PROMPTS, RunConfig
from sam3_lora.data.vocabulary import everyday_words
from sam3_lora.distributed import World
from sam3_lora.evaluation.predict import Detections
from sam3_lora.training import absent
from sam3_lora.training.absent import find_absent_words
from sam3_lora.training.run import InterruptedRunError, Stop, train
from sam3_lora.training.setup import prepare_data


class SeesAnimals:
    """A base model that finds something for some words."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found, self.asked = set(found), []

    def encode(self, pixels: np.ndarray, view: Callable[[], str]) -> np.ndarray:
        return pixels

    def ask(self, image: np.ndarray, texts: Sequence[str], *, min_score: float) -> list[Detections]:
        self.asked.append(list(texts))
        scores = [0.1 if text in self.found else 0.09 for text in texts]
        kept = [torch.tensor([score] if score >= min_score else []) for score in scores]
        return [Detections(k, torch.zeros(len(k), 4), None, 0.0) for k in kept]


def test_no_word_of_the_vocabulary_is_asked_by_the_probe():
    words = everyday_words()
    assert len(set(words)) == len(words) > 200
    assert set(words).isdisjoint(ABSENT_PROMPTS)
    assert all(word == " ".join(word.casefold().split()) for word in words)


def test_words_that_the_base_finds_a_trace_of_are_not_taken(make_config: Callable[..., RunConfig]):
    images = prepare_data(make_config(), 140).train
    base = SeesAnimals(everyday_words()[::2])
    found = find_absent_words(base, images, seed=1, world=World())
    assert sorted(found) == list(range(len(images)))
    assert all(len(set(asked)) == absent.CANDIDATES for asked in base.asked)
    kept = {word for words in found.values() for word in words}
    assert kept
    assert kept.isdisjoint(base.found)
    assert found == find_absent_words(SeesAnimals(base.found), images, seed=1, world=World())
    assert found != find_absent_words(SeesAnimals(base.found), images, seed=2, world=World())


def test_words_of_the_dataset_are_never_asked(make_config: Callable[..., RunConfig]):
    config = make_config(dataset={"prompts": {"heart": ["zebra crossing", "heart"]}})
    base = SeesAnimals([])
    images = prepare_data(config, 140).train
    for seed in range(30):
        find_absent_words(base, images, seed=seed, world=World())
    asked = {word for words in base.asked for word in words}
    assert len(asked) == len(everyday_words()) - 1
    assert "zebra" not in asked


def test_a_large_set_is_asked_in_part(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(absent, "MOST_IMAGES", 4)
    images = prepare_data(make_config(), 140).train
    assert len(find_absent_words(SeesAnimals([]), images, seed=1, world=World())) == 4


@pytest.mark.parametrize(("room", "expected"), [(32, 2), (2, 0)])
def test_samples_ask_some_of_the_words_as_negatives(make_config: Callable[..., RunConfig], room: int, expected: int):
    options = {"generic_negatives": 2, "max_queries_per_image": room}
    images = prepare_data(make_config(dataset=options), 140).train
    before = images[0, 0].queries
    images.absent_words = {0: ("zebra", "whale", "anchor")}
    after = [images[epoch, 0].queries for epoch in range(8)]
    assert after[0][: len(before)] == before  # the dataset's own negatives stay as they were
    words = [query for queries in after for query in queries if query.text in ("zebra", "whale", "anchor")]
    assert len(words) == 8 * expected
    assert not any(query.objects for query in words)
    assert len({query.text for query in words}) == (3 if expected else 0)


def test_the_base_is_asked_once_and_a_resumed_run_asks_the_same_words(make_config: Callable[..., RunConfig]):
    config = make_config(training={"max_epochs": 1})
    steps: list[Any] = []
    with pytest.raises(InterruptedRunError):
        train(config, reporter=steps.append, should_stop=lambda: Stop.INTERRUPT if _trained(steps) else None)
    file = config.output.dir / "absent_words.json"
    found = json.loads(file.read_text())
    assert sorted(map(int, found)) == list(range(6))
    file.write_text(json.dumps({position: ["kept"] for position in found}))
    train(config, resume=config.output.dir)
    assert json.loads(file.read_text()) == {position: ["kept"] for position in found}
    train(config)  # another run in the same folder asks anew
    assert json.loads(file.read_text()) == found


def test_without_generic_negatives_the_base_is_not_asked(make_config: Callable[..., RunConfig]):
    config = make_config(training={"max_epochs": 1}, dataset={"generic_negatives": 0}, evaluation={"baseline": False})
    train(config)
    assert not (config.output.dir / "absent_words.json").exists()


def _trained(events: list[Any]) -> bool:
    return any("train/loss" in event.data.get("values", {}) for event in events)
