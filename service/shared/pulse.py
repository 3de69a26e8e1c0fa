"""A sign of life for probes: a file that a process touches on every round of its loop, and the look at its age.

`python -m service.shared.pulse FILE` ends with 0 while the file is fresh, else with 1. It loads nothing but the
standard library: probes run every few seconds. Neither side asks the database, so that its absence restarts nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

MAX_AGE_S = 60.0


def beat(file: Path | None) -> None:
    """Touch the file, if there is one to touch. A full disk or a missing folder is the probe's to notice."""
    if file is not None:
        with contextlib.suppress(OSError):
            file.touch()


def age_s(file: Path) -> float | None:
    """Seconds since the last beat; None if there was none."""
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return None


def main(arguments: list[str] | None = None) -> None:
    """Exit with 0 if the file was touched lately, else with 1 and the reason."""
    parser = argparse.ArgumentParser(prog="service.shared.pulse", description="Tell whether a process still works.")
    parser.add_argument("file", type=Path, help="its SAM3_PULSE_FILE")
    parser.add_argument("--max-age", type=float, default=MAX_AGE_S, help="seconds (default: %(default)g)")
    options = parser.parse_args(arguments)
    age = age_s(options.file)
    if age is None:
        sys.exit(f"{options.file} is not there")
    if age > options.max_age:
        sys.exit(f"{options.file} was last touched {age:.0f} seconds ago")


if __name__ == "__main__":
    main()
