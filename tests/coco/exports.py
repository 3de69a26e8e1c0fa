"""Exports of annotation tools in `tests/data/exports`, zipped as the tools do."""

from __future__ import annotations

import zipfile
from pathlib import Path

EXPORTS = Path(__file__).parents[1] / "data" / "exports"


def zipped(tool: str, target: Path, *, images: bool = True) -> Path:
    """The export as an archive; `images` are added to Label Studio's of brush labels, which has none."""
    files = {path.relative_to(EXPORTS / tool): path for path in (EXPORTS / tool).rglob("*") if path.is_file()}
    if tool == "label-studio-brush" and images:
        files |= {Path("images", path.name): path for path in (EXPORTS / "label-studio" / "images").iterdir()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.write(files[name], name.as_posix())
    return target
