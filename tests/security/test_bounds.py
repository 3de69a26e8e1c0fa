"""What a request may ask for: every number has bounds, every text, list and map a largest size."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from sam3_lora.config import JobConfig, load, parse
from sam3_lora.errors import ConfigError
from service.main import create_app
from service.shared.settings import Settings
from tests.service.conftest import FakeQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEAST, MOST = {"minimum", "exclusiveMinimum", "ge", "gt"}, {"maximum", "exclusiveMaximum", "le", "lt"}
# Texts of a JSON body, which has a largest size itself, that are looked up in something known or parsed at once.
LOOKED_UP = {"init_from", "target_modules", "dataset_id", "part_ids", "prompts"}
# Lists and maps of a JSON body whose keys must be known, or whose entries the body's size bounds well enough.
OF_KNOWN_KEYS = {"component_rank", "component_alpha", "prompts"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("app")), queue=FakeQueue())
    found: dict[str, Any] = app.openapi()
    return found


class Look:
    """Finds what has no bounds in schemas, each of which is looked at once."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self._schemas = schemas
        self._seen: set[str] = set()

    def at(self, schema: dict[str, Any], place: str, name: str) -> Iterator[str]:
        """Places below `schema`, which is the value of the field `name`."""
        reference = schema.get("$ref", "").rpartition("/")[2]
        if reference and reference not in self._seen:
            self._seen.add(reference)
            yield from self.at(self._schemas[reference], reference, name)
        for inner in (each for key in ("anyOf", "allOf", "oneOf") for each in schema.get(key, [])):
            yield from self.at(inner, place, name)
        kind = schema.get("type")
        if kind is not None and not {"enum", "const"} & set(schema) and not _is_bounded(kind, set(schema), name):
            entries = schema.get("additionalProperties")
            if kind != "object" or isinstance(entries, dict):
                yield f"{place}: {kind}"
        for inner in (schema.get("items"), schema.get("additionalProperties")):
            if isinstance(inner, dict):
                yield from self.at(inner, f"{place}[]", name)
        for key, inner in schema.get("properties", {}).items():
            yield from self.at(inner, f"{place}/{key}", key)


def _is_bounded(kind: str, keys: set[str], name: str) -> bool:
    if kind in ("integer", "number"):
        return bool(LEAST & keys and MOST & keys)
    if kind == "string":
        return bool({"maxLength", "pattern", "format"} & keys) or name in LOOKED_UP
    if kind in ("array", "object"):
        return bool({"maxItems", "maxProperties"} & keys) or name in OF_KNOWN_KEYS
    return True


def unbounded(document: dict[str, Any]) -> Iterator[str]:
    look = Look(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if media_type.startswith("application/"):  # forms are bounded as they are read
                    yield from look.at(content["schema"], f"{method} {path}", "")


def test_nothing_that_a_body_may_hold_is_unbounded(document: dict[str, Any]) -> None:
    assert list(unbounded(document)) == []


def test_what_is_unbounded_is_noticed(document: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(document))
    training = changed["components"]["schemas"]["TrainingConfig"]["properties"]
    del training["batch_size"]["maximum"]
    training["new"] = {"type": "string"}
    assert list(unbounded(changed)) == ["TrainingConfig/batch_size: integer", "TrainingConfig/new: string"]


TOO_MUCH = [
    {"dataset": {"resolution": 100_000}},
    {"lora": {"rank": 4096}},
    {"lora": {"component_rank": {"vision_encoder": 4096}}},
    {"training": {"batch_size": 100_000}},
    {"training": {"max_epochs": 10**9}},
    {"training": {"num_workers": 10_000}},
    {"training": {"num_threads": 10**6}},
    {"training": {"max_seconds": 1e300}},
    {"training": {"max_grad_norm": 1e300}},
    {"training": {"mask_points": 10**9}},
    {"training": {"keep_checkpoints": 10**6}},
    {"dataset": {"augmented_views": 10**6}},
    {"evaluation": {"sample_images": 10**6}},
]


@pytest.mark.parametrize("values", TOO_MUCH, ids=str)
def test_a_job_cannot_ask_for_what_no_machine_has(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(JobConfig, values)


YAML_BOMB = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize("text", [YAML_BOMB, "lora: !!python/object/apply:os.system ['true']", "a: &a [*a]"])
def test_a_hostile_yaml_is_an_error_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 5000
