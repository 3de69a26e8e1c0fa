"""The OpenAPI document that the service itself serves."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from service.main import create_app
from service.shared.settings import Settings

METHODS = ("get", "post", "put", "patch", "delete")


@cache
def document() -> dict[str, Any]:
    """It is made once; nobody changes it."""
    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=Path(folder))).openapi()
