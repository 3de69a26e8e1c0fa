"""The process that a worker starts to compare two models: `python -m sam3_lora.evaluation.process --config FILE ...`.

Standard streams and exit codes are those of `sam3_lora.child`. It reports progress, and what made it fail; what it
measured it writes into the output folder: `report.html`, and for each model, by its number (0, 1), a folder with
`truth.json`, `predictions.json` and `evaluation.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.child import EXIT_CONFIG, EXIT_FAILED, begin, error_event
from sam3_lora.config import ComparisonConfig, parse
from sam3_lora.errors import ConfigError
from sam3_lora.events import Event, EventType

if TYPE_CHECKING:
    from sam3_lora.events import Reporter


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sam3_lora.evaluation.process")
    parser.add_argument("--config", type=Path, required=True, help="JSON of a ComparisonConfig")
    parser.add_argument("--lease-timeout", type=float, help="seconds without a lease byte after which to exit")
    options = parser.parse_args(arguments)
    reporter = begin(options.lease_timeout)
    try:
        config = parse(ComparisonConfig, json.loads(options.config.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        reporter(error_event(error))
        return EXIT_CONFIG
    try:
        run(config, reporter)
    except Exception as error:
        logging.getLogger(__name__).exception("the comparison failed")
        reporter(error_event(error))
        return EXIT_FAILED
    reporter(Event(EventType.RESULT))
    return 0


def run(config: ComparisonConfig, reporter: Reporter) -> None:
    """Measure both models and write the report."""
    from sam3_lora.evaluation.compare import Candidate, compare  # torch and sam3: seconds
    from sam3_lora.evaluation.report import Pair, write_report

    def tell(done: int, total: int) -> None:
        reporter(Event(EventType.PROGRESS, data={"images_done": done, "images_total": total}))

    models = {str(n): Candidate(model.adapter, model.base) for n, model in enumerate(config.models)}
    compare(
        config.images,
        config.annotations,
        models,
        checkpoint=config.checkpoint,
        max_images=config.max_images,
        export=config.output,
        on_image=tell,
    )
    first, second = config.models
    write_report(
        config.output,
        config.output / "report.html",
        images=config.images,
        title=config.title,
        pair=Pair("0", "1", first.name, second.name),
        facts=config.facts,
        metric=config.metric,
    )


if __name__ == "__main__":
    sys.exit(main())
