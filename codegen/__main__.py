"""Make everything anew that is made of other code: `make generate`."""

from __future__ import annotations

from pathlib import Path

from codegen import decisions, reference, schemas, synchronous


def main() -> None:
    schemas.TARGET.write_text(schemas.source(), encoding="utf-8")
    _fill(synchronous.TARGET, "*.py", synchronous.sources())
    decisions.TARGET.write_text(decisions.source(), encoding="utf-8")
    _fill(reference.TARGET, "*.md", reference.pages())


def _fill(folder: Path, pattern: str, made: dict[str, str]) -> None:
    """Write the files, and remove those that were made before and are no more."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(pattern):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
