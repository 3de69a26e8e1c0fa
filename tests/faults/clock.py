"""A wall clock that is wrong by the seconds in the file that CAMPAIGN_CLOCK names, from one moment to the next."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from service.shared.clock import SystemClock

FILE = "CAMPAIGN_CLOCK"


class WrongClock(SystemClock):
    def now(self) -> datetime:
        return super().now() + timedelta(seconds=float(Path(os.environ[FILE]).read_text() or 0))
