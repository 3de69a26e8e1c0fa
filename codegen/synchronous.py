"""`sam3_lora/client/_sync`: the client without an event loop, from the one with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import unasync

from codegen.settle import settled

CLIENT = Path(__file__).parents[1] / "sam3_lora" / "client"
SOURCE, TARGET = CLIENT / "_async", CLIENT / "_sync"
HEADER = "# Made from `_async` by `make generate`: change it there.\n"
NAMES = (
    "Client",
    "Transport",
    "Resource",
    "Collection",
    "Dataset",
    "Datasets",
    "Checkpoint",
    "Checkpoints",
    "Job",
    "Jobs",
    "Model",
    "Models",
    "Comparison",
    "Comparisons",
    "Sweep",
    "Sweeps",
)
OTHERS = {
    "_async": "_sync",
    "anyio": "time",
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "in_thread_async": "in_thread",
}


def sources() -> dict[str, str]:
    """The modules' texts by file name."""
    replacements = {f"Async{name}": name for name in NAMES} | OTHERS
    with tempfile.TemporaryDirectory() as folder:
        rule = unasync.Rule(str(SOURCE), folder, additional_replacements=replacements)
        files = sorted(SOURCE.glob("*.py"))
        unasync.unasync_files([str(file) for file in files], [rule])
        made = {file.name: HEADER + (Path(folder) / file.name).read_text(encoding="utf-8") for file in files}
    return settled(made)
