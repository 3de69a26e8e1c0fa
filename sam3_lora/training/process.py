"""The trainer process that a worker starts: `python -m sam3_lora.training.process --config FILE ...`.

Standard streams and exit codes are those of `sam3_lora.child`.

SIGTERM  save a checkpoint and leave (exit 11)      SIGUSR1  finish early and well (exit 0)
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.child import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, begin, error_event
from sam3_lora.config import RunConfig, parse
from sam3_lora.errors import ConfigError
from sam3_lora.events import Event, EventType

if TYPE_CHECKING:
    from types import FrameType

    from sam3_lora.training.run import Stop


class StopSignals:
    """Remembers what signals asked for; an interruption outranks an early finish."""

    def __init__(self) -> None:
        self.interrupted = self.finishing = False
        signal.signal(signal.SIGTERM, self._interrupt)
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGUSR1, self._finish)

    def __call__(self) -> Stop | None:
        from sam3_lora.training.run import Stop

        if self.interrupted:
            return Stop.INTERRUPT
        return Stop.FINISH if self.finishing else None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True

    def _finish(self, number: int, frame: FrameType | None) -> None:
        self.finishing = True


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    reporter, stop = begin(options.lease_timeout), StopSignals()
    try:
        config = parse(RunConfig, json.loads(options.config.read_text(encoding="utf-8")))
        from sam3_lora.training.run import InterruptedRunError, train  # torch and sam3: seconds
    except (OSError, ValueError, ConfigError) as error:
        reporter(error_event(error))
        return EXIT_CONFIG
    try:
        train(config, reporter=reporter, should_stop=stop, resume=options.resume)
    except InterruptedRunError as error:
        reporter(Event(EventType.MESSAGE, error.message))
        return EXIT_INTERRUPTED
    except Exception as error:
        logging.getLogger(__name__).exception("the run failed")
        reporter(error_event(error))
        return EXIT_FAILED
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sam3_lora.training.process")
    parser.add_argument("--config", type=Path, required=True, help="JSON of a RunConfig")
    parser.add_argument("--resume", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--lease-timeout", type=float, help="seconds without a lease byte after which to exit")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
