"""Make the client's generated parts anew: `make client`."""

from __future__ import annotations

from codegen import schemas, synchronous


def main() -> None:
    schemas.TARGET.write_text(schemas.source(), encoding="utf-8")
    made = synchronous.sources()
    for old in synchronous.TARGET.glob("*.py"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (synchronous.TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
