"""Licences of what an installation brings: those that let a service be run and its images be passed on."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PERMISSIVE = re.compile(
    r"MIT(-0|-CMU)?|Apache[- ]2\.0( License)?|Apache( Software License)?|(2-Clause |3-Clause |Free)?BSD( License)?"
    r"|0?BSD(-[23]-Clause)?|ISC( License.*)?|PSF-2\.0|Python Software Foundation License|BSL-1\.0|CNRI-Python"
    r"|MIT License|MIT licensed.*|LLVM-exception|Unlicense|DFSG approved|Zlib|HPND",
    re.IGNORECASE,
)
# Weaker copyleft, used unchanged as a library: their files stay theirs, and their sources are on the index.
UNCHANGED = {"psycopg", "psycopg-binary", "certifi", "tqdm", "orjson"}
# NVIDIA's runtime comes with CUDA's PyTorch; its licence lets applications bring it along.
PROPRIETARY = re.compile(r"nvidia-.*|cuda-.*")
READ = {"pysqlite3": "zlib, says its LICENSE"}  # and nothing in its metadata


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def licence(package: str) -> str:
    metadata = distribution(package).metadata
    classifiers = [
        each.rpartition("::")[2].strip() for each in metadata.get_all("Classifier") or [] if "License ::" in each
    ]
    said = metadata.get("License-Expression") or "; ".join(classifiers) or metadata.get("License") or ""
    return said.strip().splitlines()[0] if said.strip() else ""


def is_permissive(said: str) -> bool:
    parts = [part.strip(" ()") for part in re.split(r";| AND | OR | WITH ", said)]
    return bool(said) and all(PERMISSIVE.fullmatch(part) for part in parts)


def brought_along(requirements: list[str]) -> set[str]:
    """Names of everything that is installed with these."""
    environment = {key: str(value) for key, value in default_environment().items()}
    found: set[str] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(environment | {"extra": extra}):
            continue
        key = (name_of(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            further = distribution(key[0]).requires or []
        except PackageNotFoundError:
            continue  # for another platform, or another choice of PyTorch
        found.add(key[0])
        waiting += [(Requirement(each), extra) for each in further for extra in ("", *requirement.extras)]
    return found


def test_what_an_installation_brings_may_be_used_and_passed_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = project["optional-dependencies"]
    used = ("service", "train", "convert", "embedded", "tracing", "mlflow", "wandb")
    found = brought_along([*project["dependencies"], *(each for part in used for each in parts[part])])
    assert {"torch", "fastapi", "celery", "pysqlite3", "opentelemetry-sdk", "psycopg-binary"} <= found
    free = UNCHANGED | set(READ)
    others = {name: licence(name) for name in found if not is_permissive(licence(name))}
    assert {name: said for name, said in others.items() if name not in free and not PROPRIETARY.fullmatch(name)} == {}
    assert set(READ) <= set(others), "it says so itself by now"


@pytest.mark.parametrize(
    ("said", "may"),
    [
        ("MIT", True), ("Apache-2.0 OR BSD-3-Clause", True), ("BSD License; MIT License", True),
        ("GPL-3.0", False), ("MIT AND AGPL-3.0-only", False), ("Other/Proprietary License", False), ("", False),
    ],
)  # fmt: skip
def test_licences_are_told_apart(said: str, may: bool) -> None:
    assert is_permissive(said) is may
