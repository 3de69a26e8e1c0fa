"""What the deployment files say, as values: the Dockerfile's targets, Compose's services, rendered manifests."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def tool(name: str) -> str:
    """A program that a development package installs beside Python."""
    return str(Path(sys.executable).with_name(name))


@dataclass(frozen=True)
class Image:
    """The final state of one target of the Dockerfile."""

    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    user: str = "root"
    stop_signal: str = ""
    copied: tuple[str, ...] = ()


def images() -> dict[str, Image]:
    """The Dockerfile's targets by name; each begins with what its base, if that is a target, has."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Image] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = found.get(base, Image())
        elif word == "ENV":
            pairs = dict(part.split("=", 1) for part in shlex.split(rest))
            found[name] = replace(found[name], environment=found[name].environment | pairs)
        elif word == "COPY" and "--from" not in rest:
            found[name] = replace(found[name], copied=(*found[name].copied, *rest.split()[:-1]))
        elif word in ("ENTRYPOINT", "CMD"):
            slot = "entrypoint" if word == "ENTRYPOINT" else "command"
            found[name] = replace(found[name], **{slot: tuple(json.loads(rest))})
        elif word == "HEALTHCHECK":
            found[name] = replace(found[name], health=tuple(json.loads(rest.partition(" CMD ")[2])))
        elif word == "USER":
            found[name] = replace(found[name], user=rest)
        elif word == "STOPSIGNAL":
            found[name] = replace(found[name], stop_signal=rest)
    return found


def variables(text: str) -> dict[str, bool]:
    """The variables that a Compose file is filled in with, and whether each must be given."""
    return {name: kind == "?" for name, kind, _ in VARIABLE.findall(text)}


def compose(given: dict[str, str]) -> dict[str, Any]:
    """The Compose file, filled in. Raises KeyError for a variable that must be given and is not."""

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        return given.get(name, rest) if kind == "-" else given[name]

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(each) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return VARIABLE.sub(fill, value) if isinstance(value, str) else value

    return walk(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects that `kubectl apply --kustomize` would send."""
    command = [tool("kubectl"), "kustomize", str(KUBERNETES / "overlays" / overlay)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return list(yaml.safe_load_all(shown.stdout))


def example(path: Path) -> dict[str, str]:
    """The assignments of an environment file."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
