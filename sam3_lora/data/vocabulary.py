"""Everyday words to ask about: things that most photographs of other things do not show.

None of them is among `config.ABSENT_PROMPTS`, so that what the forgetting probe asks was never trained.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

WORDS_FILE = Path(__file__).with_name("everyday_words.txt")


@cache
def everyday_words() -> tuple[str, ...]:
    """One prompt per line of the file."""
    return tuple(WORDS_FILE.read_text(encoding="utf-8").splitlines())
