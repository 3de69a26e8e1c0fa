"""Images that are drawn after every epoch: which, and always the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam3_lora.evaluation.followed import FollowedImages
from tests.evaluation.test_report import BOXES, FAR, Data


def follow(data: Data, limit: int = 2) -> FollowedImages:
    base = data.evaluations / "base"
    return FollowedImages(data.images, base=base, limit=limit, transparent_color=(255, 255, 255))


def drawn(data: Data, followed: FollowedImages, output: Path) -> list[dict[str, Any]]:
    followed.draw(data.evaluations / "tuned", output)
    rows: list[dict[str, Any]] = json.loads((output / "index.json").read_text())
    return rows


def test_the_bases_worst_images_with_objects_are_followed_whatever_the_tuned_model_does(tmp_path: Path) -> None:
    data = Data(tmp_path, images=5)
    data.truth["annotations"] = [a for a in data.truth["annotations"] if a["image_id"] != 5]
    # The first is found whole, the second but for two, nothing in the third and fourth; an empty one is no lesson.
    false = data.found(5, *BOXES, FAR)
    data.model("base", [*data.found(1, *BOXES), *data.found(2, BOXES[0]), *data.found(4, FAR, score=0.7), *false])
    data.model("tuned", [])
    followed = follow(data)
    before = drawn(data, followed, tmp_path / "epochs" / "1")
    data.model("tuned", [*data.found(3, *BOXES), *data.found(4, *BOXES[:2]), *data.found(1, FAR)])
    after = drawn(data, followed, tmp_path / "epochs" / "2")
    anew = drawn(data, follow(data), tmp_path / "epochs" / "3")  # as a run that goes on chooses
    assert [[row["file_name"] for row in rows] for rows in (before, after, anew)] == [["4.png", "3.png"]] * 3
    assert [row["missed"] for row in before] == [{"base": 3, "tuned": 3}] * 2
    assert [row["missed"] for row in after] == [{"base": 3, "tuned": 1}, {"base": 3, "tuned": 0}]
    assert after[0]["false_alarms"] == {"base": 1, "tuned": 0}
    assert after == anew
    assert list(after[0]["panels"]) == ["image", "truth", "base", "tuned"]
    shown = [(tmp_path / "epochs" / epoch / "0-tuned.jpg").read_bytes() for epoch in "123"]
    assert shown[0] != shown[1] == shown[2]


@pytest.mark.parametrize("base", ["none", "of other data"])
def test_without_a_base_to_compare_with_the_fullest_images_are_followed(tmp_path: Path, base: str) -> None:
    data = Data(tmp_path, images=3)
    if base != "none":
        data.model("base", [])
    data.add(2, FAR)
    data.model("tuned", data.found(2, *BOXES))
    rows = drawn(data, follow(data), tmp_path / "1")
    assert [(row["file_name"], row["missed"]) for row in rows] == [("2.png", {"tuned": 1}), ("1.png", {"tuned": 3})]
    assert list(rows[0]["panels"]) == ["image", "truth", "tuned"]


def test_images_without_any_object_are_followed_where_there_are_no_others(tmp_path: Path) -> None:
    data = Data(tmp_path, images=2)
    data.truth["annotations"] = []
    data.model("tuned", data.found(2, FAR))
    rows = drawn(data, follow(data, limit=5), tmp_path / "1")
    assert [(row["file_name"], row["false_alarms"]["tuned"]) for row in rows] == [("1.png", 0), ("2.png", 1)]
