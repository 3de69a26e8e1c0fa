"""Opaque identifiers: a prefix that names the resource and a time-ordered UUID (RFC 9562, version 7)."""

from __future__ import annotations

from typing import Literal

import uuid_utils

Prefix = Literal[
    "job",
    "ds",
    "ckpt",
    "evt",
    "req",
    "worker",
    "upload",
    "part",
    "model",
    "exp",
    "pred",
    "cmp",
    "sweep",
    "whe",
    "whd",
    "msg",
    "key",
]


def new_id(prefix: Prefix) -> str:
    """`<prefix>_<32 hex digits>`; later ids of one process sort after earlier ones."""
    return f"{prefix}_{uuid_utils.uuid7().hex}"
