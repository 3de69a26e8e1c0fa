"""`sam3_lora/client/schemas.py`: what the service answers, as types, from its OpenAPI document."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodel_code_generator import InputFileType, PythonVersion, generate
from datamodel_code_generator.enums import DataModelType, ExtraFields

from codegen import openapi
from codegen.settle import settled

TARGET = Path(__file__).parents[1] / "sam3_lora" / "client" / "schemas.py"
HEADER = '''"""What the service answers. Made from its OpenAPI document by `make generate`: change it there.

Fields that a newer service adds are kept as attributes. Where a text is one of several names, newer services may know
more of them.
"""
'''
LEFT_OUT = {"OpenAI-compatible", "webhooks", "access"}  # the first has a client of its own, the others are set up once


def source() -> str:
    """The module's text."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "schemas.py"
        generate(
            json.dumps(_answers(openapi.document())),
            input_file_type=InputFileType.OpenAPI,
            output=target,
            output_model_type=DataModelType.PydanticV2BaseModel,
            target_python_version=PythonVersion.PY_311,
            use_standard_collections=True,
            use_union_operator=True,
            use_schema_description=True,
            use_field_description=True,
            disable_timestamp=True,
            extra_fields=ExtraFields.Allow,
            disable_future_imports=False,
            custom_file_header=HEADER,
            formatters=[],
        )
        return settled({target.name: target.read_text(encoding="utf-8")})[target.name]


def _answers(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the schemas of successful answers alone, under names for people, as lenient as a client is."""
    schemas = document["components"]["schemas"]
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                walk(schemas[name])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    for path in document["paths"].values():
        for method, operation in path.items():
            if method in openapi.METHODS and not LEFT_OUT & set(operation.get("tags", ())):
                walk([answer.get("content") for status, answer in operation["responses"].items() if status[0] == "2"])
    texts = {name: _lenient(schemas[name], {}) for name in found if "enum" in schemas[name]}
    found -= {*texts, *(name for name in found if name.startswith("OpenAI"))}
    names: dict[str, str | dict[str, Any]] = {**texts, **_names(found)}
    renamed = {names[name]: _lenient(schemas[name], names) for name in sorted(found)}
    return {"openapi": "3.1.0", "info": document["info"], "paths": {}, "components": {"schemas": renamed}}


def _names(schemas: set[str]) -> dict[str, str]:
    """`JobRead` is a Job, `Page_JobRead_` a JobPage."""
    names = {}
    for name in schemas:
        short = name.removesuffix("Read")
        if name.startswith("Page_"):
            short = name.removeprefix("Page_").removesuffix("_").removesuffix("Read") + "Page"
        names[name] = name if short != name and short in schemas else short
    return names


def _lenient(schema: Any, names: Mapping[str, str | dict[str, Any]]) -> Any:
    """Without bounds, defaults and closed lists of names: a server may come to answer more than it does today."""
    if isinstance(schema, list):
        return [_lenient(each, names) for each in schema if "OpenAI" not in str(each)]
    if not isinstance(schema, dict):
        return schema
    if "enum" in schema or "const" in schema:
        known = schema.get("enum", [schema.get("const")])
        told = ", ".join(str(each) for each in known)
        described = schema.get("description", "")
        return {
            "type": "string",
            "description": described if "const" in schema else f"{described} One of: {told}".strip(),
        }
    if "$ref" in schema:
        found = names[schema["$ref"].rpartition("/")[2]]
        return {"$ref": f"#/components/schemas/{found}"} if isinstance(found, str) else found
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            # `object` is the type's own name, which a Python object need not tell, and would hide the builtin.
            kept[key] = {name: _lenient(each, names) for name, each in value.items() if name != "object"}
        elif key == "required":
            kept[key] = [name for name in value if name != "object"]
        elif key in ("type", "description", "format"):
            kept[key] = value
        elif key in ("anyOf", "oneOf", "items", "additionalProperties", "prefixItems"):
            kept[key] = _lenient(value, names)
    return kept
