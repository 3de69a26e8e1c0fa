"""Run a benchmark: `python -m benchmarks NAME [arguments]`; without a name, list them."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

HELPERS = (
    "__init__",
    "__main__",
    "apart",
    "api_process",
    "bare_handler",
    "environments",
    "full_size",
    "http_load",
    "live_job",
    "mlflow_server",
    "record",
)


def benchmarks() -> dict[str, str]:
    """First line of every benchmark's docstring by name, read without importing torch."""
    here = Path(__file__).parent
    files = {path.stem: path for path in here.glob("*.py") if path.stem not in HELPERS}
    files |= {path.parent.name: path for path in here.glob("*/__init__.py")}
    texts = {
        name.replace("_", "-"): ast.get_docstring(ast.parse(files[name].read_text(encoding="utf-8"))) or ""
        for name in sorted(files)
    }
    return {name: text.partition("\n")[0] for name, text in texts.items()}


def main(arguments: list[str]) -> int:
    known = benchmarks()
    name = arguments[0] if arguments else None
    if name not in known:
        if name is not None:
            print(f"unknown benchmark {name!r}", file=sys.stderr)
        for known_name, text in known.items():
            print(f"  {known_name:<12} {text}")
        return 0 if name is None else 2
    return int(importlib.import_module(f"benchmarks.{name.replace('-', '_')}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
