"""A job's progress, shown to whoever waits for it: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sam3_lora.client.schemas import Job

LINE_EVERY_PERCENT = 10
BARS = "▁▂▃▄▅▆▇█"
CURVE_LENGTH = BAR_WIDTH = 20


@contextmanager
def shown(how: bool | Callable[[Job], object]) -> Iterator[Callable[[Job], object]]:
    """What to call with every news of a job.

    Args:
        how: True: show it on standard error; False: do nothing; a function: call it.
    """
    if not isinstance(how, bool):
        yield how
    elif not how:
        yield lambda job: None
    else:
        console = Console(stderr=True)
        bar = Bar(console)
        with bar.progress:
            yield bar if console.is_terminal else Lines(console)


class Bar:
    """A bar that lives."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TextColumn("{task.fields[told]}"))
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self.progress.add_task("", total=100, told="")
        self._losses: deque[float] = deque(maxlen=CURVE_LENGTH)

    def __call__(self, job: Job) -> None:
        percent = 100.0 if job.status == "succeeded" else (job.progress.percent if job.progress else None) or 0
        loss = getattr(job.progress, "loss", None)
        if loss is not None and not job.is_terminal:
            self._losses.append(loss)
        curve = f"{sparkline(list(self._losses))} loss {self._losses[-1]:.4g}  " if self._losses else ""
        self.progress.update(self._task, description=job.status, completed=percent, told=curve + told(job))


class Lines:
    """A line for every state, and for every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: tuple[str, int] | None = None

    def __call__(self, job: Job) -> None:
        percent = (job.progress.percent if job.progress else None) or 0
        now = job.status, int(percent // LINE_EVERY_PERCENT)
        if now != self._seen:
            self._seen = now
            self._console.print(f"{job.status} {told(job)}".rstrip(), highlight=False, soft_wrap=True)


def sparkline(values: Sequence[float]) -> str:
    """The values as a row of bars, the least the lowest."""
    least, most = min(values), max(values)
    highest = len(BARS) - 1
    return "".join(BARS[round((value - least) / (most - least) * highest) if most > least else 0] for value in values)


def told(job: Job) -> str:
    """How far it is, in a few words."""
    if job.status == "queued":
        ahead = job.queue.jobs_ahead
        return "" if ahead is None else f"{ahead} ahead"
    if job.is_terminal:
        return told_best(job)
    progress = job.progress
    if progress is None or progress.step is None:
        return job.phase or ""
    left = "" if progress.eta_s is None else f", {duration(progress.eta_s)} left"
    return f"epoch {progress.epoch} of {progress.epochs}, step {progress.step} of {progress.steps}{left}"


def told_best(job: Job) -> str:
    """Its best metric, if it has one."""
    best = job.best
    if best is None or best.value is None:
        return ""
    return f"{(best.metric or '').removeprefix('val/')} {best.value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
