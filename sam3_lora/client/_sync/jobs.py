# Made from `_async` by `make generate`: change it there.
"""Training jobs: create them, wait for them, see what they tell, take away what they made."""

from __future__ import annotations

import time
from time import sleep
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.checkpoints import Checkpoint
from sam3_lora.client._sync.following import follow
from sam3_lora.client._sync.models import Model
from sam3_lora.client._sync.resources import Collection, Resource
from sam3_lora.client.errors import ClientError, JobNotSucceededError, WaitTimeoutError
from sam3_lora.client.progress import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sam3_lora.client._sync.datasets import Dataset

WAIT_S = 25.0  # for which the server holds an answer back
CALM_S = 0.5  # at least between two looks: a trainer reports several steps a second


class Job(schemas.Job, Resource):
    """A job of the service."""

    COLLECTION = "/jobs"

    def wait(
        self,
        *,
        timeout_s: float | None = None,
        progress: bool | Callable[[schemas.Job], object] = False,
        check: bool = True,
    ) -> Self:
        """Wait until it has ended. What is lost on the way is asked for again: the service may restart meanwhile.

        Args:
            progress: True shows a bar on a terminal, lines elsewhere; a function is called with every news.
            check: raise if it has not succeeded.

        Raises:
            JobNotSucceededError: if it has failed or was cancelled.
            WaitTimeoutError: if it takes longer; the job goes on.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        headers: dict[str, str] = {}
        with shown(progress) as show:
            while True:
                left = WAIT_S if end is None else min(WAIT_S, end - time.monotonic())
                wait = {"Prefer": f"wait={max(0, int(left))}"} if headers else {}
                response = self._transport.request("GET", self._path, headers=headers | wait)
                if response.content:
                    self._take(response.json())
                    headers = {"If-None-Match": response.headers["etag"]}
                    show(self)
                if self.is_terminal:
                    break
                if end is not None and time.monotonic() >= end:
                    raise WaitTimeoutError(f"job {self.id} is still {self.status}")
                sleep(CALM_S)
        if check and self.status != "succeeded":
            raise JobNotSucceededError(self)
        return self

    def events(self, *, after: int = 0) -> Iterator[schemas.Event]:
        """What happens to it, from the beginning or behind the event `after`, until it has ended.

        A broken connection is made again; no event is missed and none comes twice.
        """
        for event in follow(self._transport, f"{self._path}/events/stream", after):
            yield schemas.Event.model_validate_json(event.data)

    def logs(self, *, follow_on: bool = False) -> Iterator[str]:
        """Its trainer's log, in pieces as they come; with `follow_on`, until it has ended."""
        if not follow_on:
            yield (self._transport.request("GET", f"{self._path}/logs", headers={"Accept": "text/plain"})).text
            return
        for event in follow(self._transport, f"{self._path}/logs/stream", 0):
            yield str(event.json()["text"])

    def metrics(self, *, after_step: int | None = None, max_points: int | None = None) -> schemas.Metrics:
        """Its curves, by name."""
        params = {"after_step": after_step, "max_points": max_points}
        given = {name: value for name, value in params.items() if value is not None}
        return schemas.Metrics.model_validate(self._transport.json("GET", f"{self._path}/metrics", params=given))

    def evaluation(self) -> schemas.Evaluation:
        """Base against tuned, overall and by category."""
        return schemas.Evaluation.model_validate(self._transport.json("GET", f"{self._path}/evaluation"))

    def checkpoints(self) -> Sequence[Checkpoint]:
        """Its checkpoints, the newest first."""
        page = self._transport.json("GET", f"{self._path}/checkpoints", params={"limit": 100})
        return [Checkpoint.made(self._transport, body) for body in page["data"]]

    def best_checkpoint(self) -> Checkpoint:
        """Its best checkpoint.

        Raises:
            ClientError: if it has none yet.
        """
        self.refresh()
        if self.best is None or self.best.checkpoint_id is None:
            raise ClientError(f"job {self.id} has no checkpoint yet: it is {self.status}")
        body = self._transport.json("GET", f"/checkpoints/{self.best.checkpoint_id}")
        return Checkpoint.made(self._transport, body)

    def download(self, target: str | Path) -> Path:
        """Fetch the adapter of its best checkpoint into a folder."""
        return (self.best_checkpoint()).download(target)

    def model(self) -> Model:
        """The model that it made.

        Raises:
            ClientError: if it has made none.
        """
        self.refresh()
        if self.result is None or self.result.model_id is None:
            raise ClientError(f"job {self.id} has made no model: it is {self.status}")
        return Model.made(self._transport, self._transport.json("GET", f"/models/{self.result.model_id}"))

    def cancel(self) -> Self:
        """Cancel it; a running one saves a checkpoint first."""
        return self._act("cancel")

    def stop(self) -> Self:
        """End it early and well: it evaluates, saves and succeeds."""
        return self._act("stop")

    def pause(self) -> Self:
        """Hold it; a running one saves a checkpoint and frees its worker."""
        return self._act("pause")

    def resume(self) -> Self:
        """Queue it again after a pause."""
        return self._act("resume")

    def update(
        self,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        priority: int | None = None,
    ) -> Self:
        """Change what is given; of `metadata`, None removes a key."""
        changes = {"name": name, "tags": tags, "metadata": metadata, "priority": priority}
        body = {key: value for key, value in changes.items() if value is not None}
        return self._take(self._transport.json("PATCH", self._path, json=body))

    def retry(self, *, from_scratch: bool = False, limits: Mapping[str, int] | None = None) -> Job:
        """A new job that goes on from the last good checkpoint of this one, which failed or was cancelled.

        Args:
            limits: those that are to be different, e.g. `{"max_runtime_s": 172800}` after a `time_limit`.
        """
        body = {"from_scratch": from_scratch, "limits": dict(limits or {})}
        return Job.made(self._transport, self._transport.json("POST", f"{self._path}/retry", json=body))

    def clone(self, **overrides: Any) -> Job:
        """A new job like this one, but for these members of a job's body, e.g. `config={"lora": {"rank": 16}}`."""
        body = {"overrides": overrides}
        return Job.made(self._transport, self._transport.json("POST", f"{self._path}/clone", json=body))

    def delete(self) -> None:
        """Delete it, once it has ended, with its checkpoints, log and samples. A model that it made stays."""
        self._transport.request("DELETE", self._path)

    def _act(self, what: str) -> Self:
        return self._take(self._transport.json("POST", f"{self._path}/{what}"))


class Jobs(Collection[Job]):
    """`client.jobs`."""

    KIND = Job

    def create(
        self,
        dataset: str | Dataset,
        *,
        base_model: str = "sam3",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **members: Any,
    ) -> Job:
        """Create a job; it is queued at once.

        Args:
            dataset: one of the service's, or its id; it may still be being checked.
            config: sections `lora`, `dataset`, `training`, `evaluation`; what is omitted takes its default.
            idempotency_key: names this very job: another call with the same key and body creates none. None: a new one
                for each call, so that what the client repeats by itself creates one job.
            members: any further member of a job's body, e.g. `priority=70`, `tags=["night"]`,
                `resources={"gpus": 4}`, `limits={"max_runtime_s": 3600}`, `seed=1`.

        Raises:
            InvalidRequestError: with every fault of the configuration in `faults`.
        """
        body = _body(dataset, base_model, name, config, members)
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._create(body, headers=headers)

    def estimate(
        self,
        dataset: str | Dataset,
        *,
        base_model: str = "sam3",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float | None = 120,
        **members: Any,
    ) -> schemas.Estimate:
        """What `create` would train, and what it takes in time and memory: a worker finds that out, in some seconds.

        Raises:
            InvalidRequestError: as `create`.
            WaitTimeoutError: if no worker has found it out in time.
        """
        body = _body(dataset, base_model, name, config, members)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            answer = self._transport.json("POST", "/jobs/estimate", json=body)
            found = schemas.Estimate.model_validate(answer)
            if found.status != "pending":
                return found
            if end is not None and time.monotonic() >= end:
                raise WaitTimeoutError("no worker has worked the estimate out yet; ask again")
            sleep(CALM_S)

    def list(
        self,
        *,
        status: str | Sequence[str] | None = None,
        tag: str | None = None,
        dataset_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, the newest first."""
        return self._every(limit, status=status, tag=tag, dataset_id=dataset_id)


def _body(
    dataset: str | Dataset,
    base_model: str,
    name: str | None,
    config: Mapping[str, Any] | None,
    members: Mapping[str, Any],
) -> dict[str, Any]:
    dataset_id = dataset if isinstance(dataset, str) else dataset.id
    called = name or (f"{base_model} on {dataset_id}" if isinstance(dataset, str) else dataset.name)
    body = {"name": called, "base_model": base_model, "dataset_id": dataset_id, "config": dict(config or {})}
    return body | {key: value for key, value in members.items() if value is not None}
