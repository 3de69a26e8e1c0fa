"""`worker.app` with the campaign's trainer, whose journal CAMPAIGN_JOURNAL names."""

import functools
import os
import sys
from pathlib import Path

from tests.faults.clock import WrongClock
from worker import app

JOURNAL = "CAMPAIGN_JOURNAL"
TRAINER = Path(__file__).with_name("trainer.py")


def main() -> None:
    app.SystemClock = WrongClock
    app.work = functools.partial(app.work, trainer=(sys.executable, "-IS", str(TRAINER), os.environ[JOURNAL]))
    app.main()


if __name__ == "__main__":
    main()
