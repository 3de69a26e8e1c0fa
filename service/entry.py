"""The command `sam3-service`: the program, or what to install for it."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from service import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("service"):
            raise
        sys.exit(f"the service needs {error.name}: pip install 'sam3-lora-service[service]'")
    cli.main()


if __name__ == "__main__":
    main()
