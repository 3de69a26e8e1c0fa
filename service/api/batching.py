"""Answering together what is asked at the same time: one thread and one transaction for many requests.

While an answer is being made, questions gather; the next answer is for all of them. It begins once the loop is done
with the requests that have arrived, so that it is for those as well: the loop's work and the answer's share one
interpreter, and no time is lost. Whoever asks alone is answered at once. So the cost of a transaction is shared as soon
as there is a crowd, and there is no timer.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Q = TypeVar("Q")
A = TypeVar("A")

MAX_BATCH = 64
QUIET_ROUNDS = 6
"""Rounds of the loop without a question after which no request is on its way: reading one takes a few, and a client
that was just answered as many until it is heard of again. A round in which nothing happens takes some 10 us."""


class Batcher(Generic[Q, A]):
    """Belongs to one event loop."""

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        """`answer`: called in a thread, one call at a time; for each question its answer or the error to raise.

        What it raises itself is raised for every question of that call.
        """
        self._answer = answer
        self._asked: list[tuple[Q, asyncio.Future[A]]] = []
        self._answering: asyncio.Task[None] | None = None
        self._thread = CapacityLimiter(1)  # its own: a crowd in other threads keeps nobody waiting here

    async def ask(self, question: Q) -> A:
        """The answer; whoever is cancelled meanwhile has asked nevertheless."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked.append((question, future))
        if self._answering is None:
            # In a context of its own: the one of the first request would give its id to what is logged for all.
            self._answering = asyncio.get_running_loop().create_task(self._answer_all(), context=Context())
        return await future

    async def _gather(self) -> None:
        """Let those ask whose requests the loop already has."""
        quiet = 0
        while quiet < QUIET_ROUNDS and len(self._asked) < MAX_BATCH:
            known = len(self._asked)
            await asyncio.sleep(0)
            quiet = 0 if len(self._asked) > known else quiet + 1

    async def _answer_all(self) -> None:
        try:
            while self._asked:
                await self._gather()
                batch, self._asked = self._asked[:MAX_BATCH], self._asked[MAX_BATCH:]
                questions = [question for question, _ in batch]
                answers: Sequence[A | Exception]
                try:
                    answers = await to_thread.run_sync(self._answer, questions, limiter=self._thread)
                except Exception as error:  # noqa: BLE001 - it is raised where the questions were asked
                    answers = [error] * len(batch)
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._answering = None
