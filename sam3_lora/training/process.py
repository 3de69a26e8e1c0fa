"""The trainer process that a worker starts: `python -m sam3_lora.training.process --config FILE ...`.

Standard streams and exit codes are those of `sam3_lora.child`.

SIGTERM  save a checkpoint and leave (exit 11)      SIGUSR1  finish early and well (exit 0)

With `--processes N` it starts the others of a distributed run itself (`training.launch`) and stands for all of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.child import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, begin, error_event
from sam3_lora.config import RunConfig, parse
from sam3_lora.errors import ConfigError, Sam3LoraError
from sam3_lora.events import Event, EventType
from sam3_lora.training import launch
from sam3_lora.training.launch import Crew

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from sam3_lora.child import LineReporter
    from sam3_lora.training.run import Stop

log = logging.getLogger(__name__)


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
    if options.leader is not None:
        launch.follow(options.leader)
    reporter = begin(options.lease_timeout if options.leader is None else None)
    stop: Callable[[], Stop | None] = StopSignals() if options.leader is None else lambda: None

    def fail(error: Event) -> None:
        if reporter.close_with(error):
            os._exit(EXIT_FAILED)  # at once: the main thread may wait for a process that is gone

    try:
        config = parse(RunConfig, json.loads(options.config.read_text(encoding="utf-8")))
        with Crew(options.processes if options.leader is None else 1, on_failure=fail) as crew:
            return _run(config, options.resume, reporter, stop, crew)
    except (OSError, ValueError, ConfigError) as error:
        reporter.close_with(error_event(error))
        return EXIT_CONFIG


def _run(
    config: RunConfig, resume: Path | None, reporter: LineReporter, stop: Callable[[], Stop | None], crew: Crew
) -> int:
    """Train together with the crew; the exit code."""
    from sam3_lora import distributed  # torch and sam3: seconds
    from sam3_lora.training.run import InterruptedRunError, train

    has_result = False

    def report(event: Event) -> None:
        nonlocal has_result
        if event.type is EventType.RESULT:
            has_result = True
            crew.has_result()
        reporter(event)

    try:
        with distributed.join(crew.listener):
            try:  # an error is told before the connections end, which makes the other processes fail too
                train(config, reporter=report, should_stop=stop, resume=resume)
            except InterruptedRunError as error:
                reporter(Event(EventType.MESSAGE, error.message))
                return EXIT_INTERRUPTED
            except Exception as error:
                log.exception("the run failed")
                _fail(error, reporter, crew)
                return EXIT_FAILED
    except Exception as error:
        log.exception("the processes cannot talk to each other")
        if has_result:  # what they had to say to each other is said
            crew.exit_soon(0)
            return 0
        _fail(error, reporter, crew)
        return EXIT_FAILED
    return 0


def _fail(error: Exception, reporter: LineReporter, crew: Crew) -> None:
    """Tell the error of the run, unless it is the consequence of another process's, and let the others go."""
    if not isinstance(error, Sam3LoraError):
        crew.let_others_fail_first()
    reporter.close_with(error_event(error))
    crew.dismiss(0)
    crew.exit_soon(EXIT_FAILED)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sam3_lora.training.process")
    parser.add_argument("--config", type=Path, required=True, help="JSON of a RunConfig")
    parser.add_argument("--resume", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--lease-timeout", type=float, help="seconds without a lease byte after which to exit")
    parser.add_argument("--processes", type=int, default=1, help="processes that train together, one for each GPU")
    parser.add_argument("--leader", type=int, help=argparse.SUPPRESS)  # process id: this is a follower of that one
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error("--processes must be at least 1")
    if options.processes > 1 and options.leader is None and "WORLD_SIZE" in os.environ:
        parser.error("--processes is for a process that torchrun did not start")
    return options


if __name__ == "__main__":
    sys.exit(main())
