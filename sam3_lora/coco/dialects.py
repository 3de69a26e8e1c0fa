"""What annotation tools mean where they do not write what COCO says."""

from __future__ import annotations

import re
from typing import Any

ELSEWHERE = re.compile(r"/|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://")


def unused_super_category(document: dict[str, Any]) -> dict[str, Any] | None:
    """The record that Roboflow's exports put first for the project: id 0, the others' parent, never annotated."""
    categories = [record for record in list_of(document, "categories") if isinstance(record, dict)]
    first = next((record for record in categories if record.get("id") == 0), None)
    if first is None or not isinstance(first.get("name"), str):
        return None
    if not any(record.get("supercategory") == first["name"] for record in categories if record is not first):
        return None
    used = any(isinstance(r, dict) and r.get("category_id") == 0 for r in list_of(document, "annotations"))
    return None if used else first


def file_in_dataset(name: str) -> str:
    """The file that Label Studio means by the name of an image: of a URL or a path on its server, the last part.

    It puts images beside its file, and names them by where they were (HumanSignal/label-studio#7294).
    """
    parts = name.replace("\\", "/").split("/")
    return (parts[-1] or name) if "\\" in name or ".." in parts or ELSEWHERE.match(name) else name


def is_of_label_studio(document: dict[str, Any]) -> bool:
    """Whether its info says so."""
    info = document.get("info")
    return isinstance(info, dict) and str(info.get("contributor")).startswith("Label Studio")


def is_mask_of_cvat(record: dict[str, Any]) -> bool:
    """Whether CVAT wrote it, which says of every shape if it is occluded, and of every mask that it is a crowd.

    datumaro/plugins/data_formats/coco/exporter.py, `convert_instance`: `is_crowd = mask is not None`.
    """
    attributes = record.get("attributes")
    return isinstance(attributes, dict) and "occluded" in attributes and isinstance(record.get("segmentation"), dict)


def list_of(document: dict[str, Any], key: str) -> list[Any]:
    """The list of that name, empty if it is none."""
    value = document.get(key)
    return value if isinstance(value, list) else []
