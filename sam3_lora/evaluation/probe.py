"""The forgetting probe: does a tuned model fire on things that are in none of the images?

Tuning on a few concepts can teach a model to say yes to anything (arXiv 2511.16719, section 5, scores the same danger
with negatives of the dataset). So a fixed list of words is asked about images that show nothing of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sam3_lora.data.concepts import Concept


@dataclass(frozen=True)
class FalseAlarms:
    """How often an absent thing was reported."""

    prompt: str
    false_alarms: int  # images with a detection of at least `cgf1.THRESHOLD`
    images: int

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "false_alarms": self.false_alarms, "images": self.images}


def not_in_dataset(prompts: Iterable[str], concepts: Sequence[Concept]) -> list[str]:
    """The prompts that share no word with any concept's texts."""
    words = {word for concept in concepts for text in concept.texts for word in text.casefold().split()}
    return [prompt for prompt in prompts if words.isdisjoint(prompt.casefold().split())]


def count_false_alarms(prompts: Sequence[str], fired: Sequence[Sequence[bool]]) -> list[FalseAlarms]:
    """Sums of `fired`, which holds for each image whether each prompt found something."""
    return [FalseAlarms(prompt, sum(image[i] for image in fired), len(fired)) for i, prompt in enumerate(prompts)]


def rate(rows: Sequence[FalseAlarms]) -> float | None:
    """False alarms per question; None where nothing was asked."""
    asked = sum(row.images for row in rows)
    return sum(row.false_alarms for row in rows) / asked if asked else None
