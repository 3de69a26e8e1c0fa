"""What a run tells of itself, apart from its training."""

from __future__ import annotations

import pytest

from sam3_lora.events import EventType, Phase
from sam3_lora.training.reporting import RunReporter
from tests.training.recorder import Recorder


@pytest.fixture(autouse=True)
def _no_report_is_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam3_lora.training.reporting.PROGRESS_INTERVAL_S", 0.0)


def test_every_report_of_progress_after_the_first_step_says_how_fast_it_is_and_what_is_left() -> None:
    events = Recorder()
    reports = RunReporter(events, None)

    def step(number: int) -> None:
        reports.step({"loss": 0.5}, epoch=1, epochs=2, step=number, steps=10, images=4, seconds=2.0)

    reports.begin(epoch=1, epochs=2, step=0, steps=10)
    reports.asked(1, 2)
    step(1)
    reports.asked(1, 2)
    reports.asked(2, 2)
    step(2)
    before, *after = [event.data for event in events.of(EventType.PROGRESS)]
    assert "eta_s" not in before
    assert [(data["eta_s"], data["images_per_s"]) for data in after] == [(18.0, 2.0)] * 3 + [(16.0, 2.0)]
    assert [data["step"] for data in after] == [1, 1, 1, 2]
    assert [data.get("images_done") for data in after] == [None, 1, 2, None]


def test_a_phase_is_told_once_and_in_words() -> None:
    events = Recorder()
    reports = RunReporter(events, None)
    for phase in (Phase.LOADING_MODEL, Phase.TRAINING, Phase.TRAINING):
        reports.phase(phase)
    told = [(event.message, event.data) for event in events.of(EventType.PHASE)]
    assert told == [("Loading model", {"phase": "loading_model"}), ("Training", {"phase": "training"})]
