import json
import math

import pytest

from sam3_lora.events import MAX_LINE_BYTES, Event, EventType, Level, finite


def test_line_round_trip():
    event = Event(EventType.METRICS, "text\nwith ünïcode", {"step": 3, "values": {"a": 0.5}}, Level.WARNING)
    assert "\n" not in event.to_line()
    assert Event.from_line(event.to_line()) == event


def test_non_finite_numbers_become_null():
    line = Event(EventType.METRICS, data={"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5,)}).to_line()
    assert json.loads(line)["data"] == {"a": None, "b": [None, {"c": None}], "d": [1.5]}
    assert finite({"a": 1, "b": "x", "c": True}) == {"a": 1, "b": "x", "c": True}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "text",
        "[]",
        "{}",
        '{"type": "phase", "level": "info", "message": "", "data": []}',
        '{"type": "nonsense", "level": "info", "message": "", "data": {}}',
        "x" * (MAX_LINE_BYTES + 1),
    ],
    ids=range(7),
)
def test_anything_else_is_no_event(line: str):
    with pytest.raises((ValueError, KeyError)):
        Event.from_line(line)
