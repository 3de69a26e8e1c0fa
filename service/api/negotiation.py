"""Which of several media types a client wants (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Sequence

WEIGHT = re.compile(r"q\s*=\s*([01](?:\.\d{0,3})?)", re.IGNORECASE)


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that an Accept header weighs most; the first one on a tie, or where it takes none of them."""
    ranges: dict[str, float] = {}
    for part in (accept or "*/*").split(","):
        name, _, parameters = part.partition(";")
        weight = WEIGHT.search(parameters)
        ranges[name.strip().lower()] = float(weight[1]) if weight else 1.0

    def weight_of(media_type: str) -> float:
        wildcard = media_type.partition("/")[0] + "/*"
        return next((ranges[name] for name in (media_type, wildcard, "*/*") if name in ranges), 0.0)

    return max(offered, key=weight_of)
