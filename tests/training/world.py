"""What `torchrun` starts in the tests: `world.py BASES CONFIG...` trains each configuration in turn.

A configuration may carry `"interrupt": {"rank": r, "step": k}`: that process alone asks to stop after step k.
Rank 0 prints one JSON line per configuration: losses by step and the end.
"""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402

from sam3_lora.config import RunConfig, parse  # noqa: E402
from sam3_lora.distributed import join  # noqa: E402
from sam3_lora.events import Event, EventType  # noqa: E402
from sam3_lora.model import weights  # noqa: E402
from sam3_lora.training import step as step_module  # noqa: E402
from sam3_lora.training.run import InterruptedRunError, Stop, train  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    weights.BASES = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    original = step_module.Stepper.__call__
    for path in sys.argv[2:]:
        values = json.loads(Path(path).read_text())
        interrupt, resume = values.pop("interrupt", None), values.pop("resume", None)
        config = parse(RunConfig, values)
        losses: dict[int, float] = {}
        steps: list[None] = []

        def counted(self: object, batches: object, steps: list[None] = steps) -> object:
            steps.append(None)
            return original(self, batches)

        def observe(event: Event, losses: dict[int, float] = losses) -> None:
            if event.type is EventType.METRICS and "train/loss" in event.data["values"]:
                losses[event.data["step"]] = event.data["values"]["train/loss"]

        def should_stop(interrupt: dict | None = interrupt, steps: list[None] = steps) -> Stop | None:
            due = interrupt is not None and interrupt["rank"] == rank and len(steps) >= interrupt["step"]
            return Stop.INTERRUPT if due else None

        step_module.Stepper.__call__ = counted
        end = "done"
        try:
            train(config, reporter=observe, should_stop=should_stop, resume=resume and Path(resume))
        except InterruptedRunError:
            end = "interrupted"
        if rank == 0:
            sys.stdout.write(json.dumps({"losses": losses, "end": end}) + "\n")


if __name__ == "__main__":
    with join():  # one group for all runs
        main()
