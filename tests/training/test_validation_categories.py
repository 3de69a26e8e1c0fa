"""Training and validation set may number their categories differently: names count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sam3_lora.errors import DatasetError
from sam3_lora.training.setup import prepare_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sam3_lora.config import RunConfig


@pytest.fixture
def renamed(make_config: Callable[..., RunConfig], drawn: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The configuration with a validation file whose categories, by id, are called so."""

    def make(**names: str) -> RunConfig:
        content: dict[str, Any] = json.loads((drawn / "valid" / "_annotations.coco.json").read_text())
        content["categories"] = [{"id": int(number[1:]), "name": name} for number, name in names.items()]
        file = tmp_path / "renamed.json"
        file.write_text(json.dumps(content))
        return make_config(dataset={"val_ann_file": str(file)})

    return make


def test_annotations_go_to_the_category_of_their_name(
    make_config: Callable[..., RunConfig], renamed: Callable[..., RunConfig], drawn: Path
) -> None:
    content = json.loads((drawn / "train" / "_annotations.coco.json").read_text())
    names = {category["name"]: category["id"] for category in content["categories"]}
    assert set(names) >= {"heart", "cross"}
    plain = prepare_data(make_config(), 140).validation
    swapped = prepare_data(renamed(**{f"n{names['heart']}": "Cross", f"n{names['cross']}": "heart"}), 140).validation
    assert plain is not None
    assert swapped is not None
    other = {names["heart"]: names["cross"], names["cross"]: names["heart"]}
    assert [a.category_id for a in swapped.annotations] == [other[a.category_id] for a in plain.annotations]
    assert swapped.categories == plain.categories


def test_categories_that_were_not_trained_are_not_measured_and_named(
    renamed: Callable[..., RunConfig], drawn: Path
) -> None:
    content = json.loads((drawn / "train" / "_annotations.coco.json").read_text())
    names = {category["name"]: category["id"] for category in content["categories"]}
    data = prepare_data(renamed(**{f"n{names['heart']}": "heart", f"n{names['cross']}": "star"}), 140)
    assert data.validation is not None
    assert {a.category_id for a in data.validation.annotations} <= {names["heart"]}
    assert any("['star'] are only in the validation set" in notice for notice in data.notices)
    with pytest.raises(DatasetError, match="no category in common"):
        prepare_data(renamed(**{f"n{names['heart']}": "moon", f"n{names['cross']}": "star"}), 140)
