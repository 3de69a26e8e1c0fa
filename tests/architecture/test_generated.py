"""What is made of other code is what that code makes."""

from __future__ import annotations

from codegen import decisions, reference, schemas, synchronous


def test_the_types_are_those_of_the_openapi_document() -> None:
    assert schemas.source() == schemas.TARGET.read_text(encoding="utf-8"), "run `make generate`"


def test_the_synchronous_client_is_the_asynchronous_one() -> None:
    there = {file.name: file.read_text(encoding="utf-8") for file in synchronous.TARGET.glob("*.py")}
    assert synchronous.sources() == there, "run `make generate`"


def test_the_reference_is_what_the_code_does() -> None:
    there = {file.name: file.read_text(encoding="utf-8") for file in reference.TARGET.glob("*.md")}
    assert reference.pages() == there, "run `make generate`"


def test_every_decision_is_in_the_list() -> None:
    assert decisions.source() == decisions.TARGET.read_text(encoding="utf-8"), "run `make generate`"
