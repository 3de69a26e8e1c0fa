"""Tables of fields, from JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

LEAST, MOST = ("minimum", "ge"), ("maximum", "le")
OTHERS = {"exclusiveMinimum": "above", "gt": "above", "exclusiveMaximum": "below", "lt": "below"}
LONGEST_DEFAULT = 100


class Fields:
    """Writes what schemas say in Markdown; `refer` tells how another schema is named there."""

    def __init__(self, schemas: Mapping[str, Any], refer: Callable[[str], str]) -> None:
        self._schemas, self._refer = schemas, refer

    def table(self, schema: Mapping[str, Any]) -> str:
        """The fields of an object: name, type, default (where it has one), meaning."""
        required = set(schema.get("required", ()))
        rows = ["| key | type | default | |", "|---|---|---|---|"]
        for name, field in schema["properties"].items():
            default = "**required**" if name in required else self._default(field)
            rows.append(f"| `{name}` | {self.type(field)} | {default} | {cell(field.get('description', ''))} |")
        return "\n".join(rows) + "\n"

    def type(self, schema: Any) -> str:
        """A type in a few words, with its bounds."""
        if not isinstance(schema, dict) or not schema:
            return "anything"
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            found = self._schemas[name]
            return self.type(found) if "enum" in found else self._refer(name)
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if "const" in schema:
            return f"`{schema['const']}`"
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return " or ".join(dict.fromkeys(self.type(each) for each in schema[several]))
        return self._plain(schema)

    def _plain(self, schema: dict[str, Any]) -> str:
        kind = schema.get("type", "anything")
        if isinstance(kind, list):
            return " or ".join(self._plain({**schema, "type": each}) for each in kind)
        if kind == "array":
            return f"list of {self.type(schema.get('items', {}))}"
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"map to {self.type(values)}" if isinstance(values, dict) and values else "object"
        names = {"date-time": "time", "binary": "file", "path": "path"}
        bounds = _range(schema, LEAST, MOST)
        bounds += [f"{word} {_number(schema[key])}" for key, word in OTHERS.items() if key in schema]
        lengths = _range(schema, ("minLength",), ("maxLength",))
        bounds += [f"of {length} characters" for length in lengths]
        return " ".join([names.get(str(schema.get("format")), kind), ", ".join(bounds)]).strip()

    def _default(self, field: Mapping[str, Any]) -> str:
        if "default" not in field:
            return ""
        value = field["default"]
        text = _number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        return f"`{cell(text)}`" if len(text) <= LONGEST_DEFAULT else "several"


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _range(schema: Mapping[str, Any], least: tuple[str, ...], most: tuple[str, ...]) -> list[str]:
    low = next((_number(schema[key]) for key in least if key in schema), None)
    high = next((_number(schema[key]) for key in most if key in schema), None)
    if low is not None and high is not None:
        return [f"{low} to {high}"]
    return [f"from {low}"] if low is not None else [f"up to {high}"] if high is not None else []


def _number(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
