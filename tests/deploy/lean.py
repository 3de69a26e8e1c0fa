"""`python -m tests.deploy.lean EXTRAS MODULE ARGUMENTS...`: run a module as if only these extras were installed.

Modules of every other distribution cannot be imported. `EXTRAS`: separated by commas, `-` for none.
"""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(extras: set[str]) -> set[str]:
    """Canonical names of the distributions that an installation with the extras brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    waiting += [Requirement(text) for extra in extras for text in project["optional-dependencies"][extra]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonical(wanted.name), frozenset(wanted.extras))
        if key in seen or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        for text in metadata.requires(wanted.name) or []:
            needed = Requirement(text)
            environments: list[dict[str, str]] = [{"extra": extra} for extra in ("", *wanted.extras)]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                needed.marker = None
                waiting.append(needed)
    return {name for name, _ in seen}


class Lean:
    """Finds what another finder finds, but for the modules of other distributions."""

    def __init__(self, inner: Any, allowed: set[str]) -> None:
        self._inner = inner
        self._owners = metadata.packages_distributions()
        self._allowed = allowed | {"sam3-lora-service"}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        owners = {canonical(owner) for owner in self._owners.get(name.partition(".")[0], [])}
        if owners and not owners & self._allowed:
            return None
        return self._inner.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def main() -> None:
    extras, module, *arguments = sys.argv[1:]
    allowed = closure(set(extras.split(",")) - {"-"})
    for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        del sys.modules[name]  # loaded by us alone
    sys.meta_path[:] = [Lean(finder, allowed) for finder in sys.meta_path]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
