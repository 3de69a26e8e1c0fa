"""`docs/reference`: every key of a configuration, setting, command and request, from the code that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codegen import openapi
from codegen.reference import commands, http
from codegen.reference.fields import Fields
from sam3_lora.config import RunConfig
from service.shared.settings import PREFIX, Settings

TARGET = Path(__file__).parents[2] / "docs" / "reference"
NOTE = "<!-- Made by `make generate`: change the code that this describes. -->\n"
CONFIGURATION = """# Configuration of a training

The sections of the YAML that `train.py --config` and `sam3-lora train` take. `config` of a job of the service has the
same `lora`, `dataset`, `training` and `evaluation`, without the paths of `dataset`; what is in `model` and `output`
the service decides. Every key acts, and an unknown one is an error that names the nearest.
"""
SETTINGS = """# Settings of the service

Environment variables that every process of the service reads once, at its start. All have a default, with which
`sam3-service serve` runs on one machine; lists are written with commas, where nothing else is said. An unknown
`SAM3_...` variable is an error that names the nearest. How they belong together: [operations](../operations.md).
"""


def pages() -> dict[str, str]:
    """The text of each page, by file name."""
    made = {"configuration.md": configuration(), "settings.md": settings(), "commands.md": commands.page()}
    made |= {"http.md": http.page(openapi.document()), "schemas.md": http.schemas_page(openapi.document())}
    return {name: NOTE + "\n" + text for name, text in made.items()}


def configuration() -> str:
    schema = RunConfig.model_json_schema()
    fields = Fields(schema["$defs"], lambda name: name)
    parts = [CONFIGURATION]
    for name, section in schema["properties"].items():
        found = schema["$defs"][section["$ref"].rpartition("/")[2]]
        parts.append(f"## {name}\n\n{found['description']}\n\n{fields.table(found)}")
    return "\n".join(parts)


def settings() -> str:
    schema = Settings.model_json_schema()
    named: dict[str, Any] = {f"{PREFIX}{name.upper()}": field for name, field in schema["properties"].items()}
    table = Fields(schema.get("$defs", {}), lambda name: name).table({"properties": named})
    return SETTINGS + "\n" + table
