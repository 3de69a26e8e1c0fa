"""How figures, times and names are written for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Callable

NONE = "–"
UNITS = ("bytes", "kB", "MB", "GB", "TB")
KILO = 1000


def size(value: float | None) -> str:
    """Bytes in the largest decimal unit that leaves a whole part."""
    if value is None:
        return NONE
    number, unit = float(value), 0
    while number >= KILO and unit < len(UNITS) - 1:
        number, unit = number / KILO, unit + 1
    return f"{number:.0f} {UNITS[unit]}" if unit == 0 or number >= 100 else f"{number:.1f} {UNITS[unit]}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NONE if value is None else f"{value:,.0f}".replace(",", "\u202f")


def counted(value: float, noun: str) -> str:
    """So many of something."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def figure(value: float | None) -> str:
    """A score or a loss: three digits behind the point."""
    return NONE if value is None else f"{value:.3f}"


def change(value: float | None) -> str:
    """A difference, with its sign."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "\u2212")


def duration(seconds: float | None) -> str:
    """Seconds as people say them, in at most two units."""
    if seconds is None:
        return NONE
    left = max(0, round(seconds))
    parts = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2]) or "0 s"


def moment(value: datetime | str | None) -> Markup:
    """A time, in UTC until a script writes it in the time of whoever looks."""
    if value is None:
        return escape(NONE)
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M:%S} UTC", f"{at:%Y-%m-%d %H:%M} UTC"
    )


def words(value: object) -> str:
    """A name of the API, such as `validating_files`, as words."""
    return str(value).replace("_", " ")


def state(value: object) -> Markup:
    """A state of a job, dataset or delivery, with its colour."""
    return Markup('<span class="state {}">{}</span>').format(str(value), words(value))


def merged(values: dict[str, Any], **further: Any) -> dict[str, Any]:
    """A copy with other members."""
    return {**values, **further}


FILTERS: dict[str, Callable[..., Any]] = {
    "merged": merged,
    "size": size,
    "count": count,
    "counted": counted,
    "figure": figure,
    "change": change,
    "duration": duration,
    "moment": moment,
    "words": words,
    "state": state,
}
