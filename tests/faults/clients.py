"""Users of a campaign: they ask again until somebody says what became of it, and note what they were promised."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.plan import PlannedJob

AGAIN_S = 0.3
POLL_S = 0.4
TIMEOUT_S = 15.0
CLIENTS = 8
AWAY = (503, 507)  # as it says itself: something that it needs is away, or a disk is full
TRANSIENT = (408, 429, 500, 502, 504, *AWAY)


class OutOfTimeError(Exception):
    """The campaign's deadline has passed."""


@dataclass
class Promised:
    """A job whose creation was answered, and what users were told of it later; times are of the monotonic clock."""

    key: str
    job_id: str
    seed: int
    steps: int
    is_real: bool
    retry_of: str | None = None
    cancelled: bool = False
    stopped: bool = False
    ended_as: str | None = None
    ended_at: float | None = None


@dataclass
class Notes:
    """What all clients have seen; `faults` is what no client should ever see."""

    promised: dict[str, Promised] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    created: int = 0
    events_followed: int = 0
    reconnections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, invariant: str, **facts: Any) -> None:
        with self.lock:
            self.faults.append({"invariant": invariant, **facts})

    def count(self, what: str) -> None:
        with self.lock:
            self.answers[what] += 1


class Client:
    """One user's connections to all APIs."""

    def __init__(self, urls: list[str], notes: Notes, is_over: Callable[[], bool]) -> None:
        self._urls = urls
        self._http = httpx.Client(timeout=TIMEOUT_S)
        self.notes = notes
        self.is_over = is_over

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The first answer that is final, from whichever API gives it."""
        while True:
            if self.is_over():
                raise OutOfTimeError(f"{method} {path}")
            try:
                answer = self._http.request(method, random.choice(self._urls) + path, **request)
            except httpx.HTTPError as error:
                self.notes.count(type(error).__name__)
            else:
                self.notes.count(str(answer.status_code))
                if answer.status_code >= 500 and answer.status_code not in AWAY:
                    self.notes.fault("server_error", status=answer.status_code, path=path, said=answer.text[:400])
                if answer.status_code not in TRANSIENT:
                    return answer
            time.sleep(AGAIN_S)

    def upload(self, archive: Path, key: str) -> str:
        content = archive.read_bytes()
        answer = self.ask(
            "POST",
            "/v1/datasets",
            data={"name": key},
            files={"file": ("shapes.zip", content)},
            headers={"Idempotency-Key": key},
        )
        if answer.status_code != 201:
            self.notes.fault("upload_refused", status=answer.status_code, said=answer.text[:400])
            raise RuntimeError(answer.text)
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/v1/jobs/{job_id}")
        if answer.status_code != 200:
            self.notes.fault("lost", job=job_id, why=f"GET answers {answer.status_code}")
            raise RuntimeError(answer.text)
        return dict(answer.json())

    def create(self, planned: PlannedJob, dataset_id: str, key: str) -> Promised | None:
        body = {
            "name": key,
            "base_model": "sam3-tiny",
            "dataset_id": dataset_id,
            "config": planned.config,
            "seed": planned.seed,
            "limits": {"max_attempts": 20},
            "metadata": {"key": key},
        }
        answer = self._post_once("/v1/jobs", key, body)
        return None if answer is None else self._note(answer, key, planned, None)

    def retry(self, planned: PlannedJob, job_id: str, key: str) -> Promised | None:
        answer = self._post_once(f"/v1/jobs/{job_id}/retry", key, {})
        return None if answer is None else self._note(answer, key, planned, job_id)

    def _note(self, job_id: str, key: str, planned: PlannedJob, retry_of: str | None) -> Promised:
        from tests.faults.trainer import STEPS

        promised = Promised(key, job_id, planned.seed, planned.epochs * STEPS, planned.is_real, retry_of)
        with self.notes.lock:
            self.notes.promised[job_id] = promised
            self.notes.created += 1
        return promised

    def _post_once(self, path: str, key: str, body: dict[str, Any]) -> str | None:
        """Id of what was created; asked once more afterwards, as by a client that has lost the answer."""
        ids = set()
        for _ in range(2 if random.random() < 0.2 else 1):
            while True:
                answer = self.ask("POST", path, json=body, headers={"Idempotency-Key": key})
                if answer.status_code != 409:  # the same key is being answered
                    break
                time.sleep(AGAIN_S)
            if answer.status_code != 201:
                self.notes.fault("create_refused", key=key, status=answer.status_code, said=answer.text[:400])
                return None
            ids.add(str(answer.json()["id"]))
        if len(ids) > 1:
            self.notes.fault("doubled", key=key, why="one key was answered with two jobs", jobs=sorted(ids))
        return ids.pop()

    def act(self, promised: Promised, action: str) -> bool:
        """Whether the action was taken; a job that has got elsewhere refuses it."""
        answer = self.ask("POST", f"/v1/jobs/{promised.job_id}/{action}")
        if answer.status_code not in (200, 202, 409):
            self.notes.fault("action_refused", job=promised.job_id, action=action, status=answer.status_code)
        return answer.status_code in (200, 202)

    def until(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            job = self.job(job_id)
            if condition(job):
                return job
            time.sleep(POLL_S)

    def wait(self, promised: Promised) -> dict[str, Any]:
        """The job once it has ended."""
        job = self.until(promised.job_id, lambda job: job["is_terminal"])
        promised.ended_at, promised.ended_as = time.monotonic(), job["status"]
        return job

    def follow(self, job_id: str) -> None:
        """Read the job's stream to its end, across broken connections; numbers must come one after the other."""
        last, is_done, tries = 0, False, 0
        while not is_done and not self.is_over():
            tries += 1
            with contextlib.suppress(httpx.HTTPError):
                headers = {"Last-Event-ID": str(last)} if last else {}
                url = f"{random.choice(self._urls)}/v1/jobs/{job_id}/events/stream"
                with self._http.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as answer:
                    if answer.status_code == 204:
                        is_done = True
                    elif answer.status_code == 200:
                        for line in answer.iter_lines():
                            if line.startswith("id:"):
                                number = int(line.removeprefix("id:"))
                                if number != last + 1:
                                    self.notes.fault("stream", job=job_id, after=last, came=number)
                                last = number
                            elif line.startswith("event:") and line.removeprefix("event:").strip() == "done":
                                is_done = True
                    elif answer.status_code not in TRANSIENT:
                        self.notes.fault("stream", job=job_id, status=answer.status_code)
                        return
            time.sleep(AGAIN_S)
        with self.notes.lock:
            self.notes.events_followed += last
            self.notes.reconnections += tries - 1


class Crowd:
    """So many clients at a time work off the planned jobs, on datasets that are uploaded anew now and then."""

    def __init__(self, urls: list[str], jobs: list[PlannedJob], archive: Path, is_over: Callable[[], bool]) -> None:
        self.notes = Notes()
        self._urls = urls
        self._left = list(reversed(jobs))
        self._archive = archive
        self._is_over = is_over
        self._datasets: list[str] = []
        self._every = max(10, len(jobs) // 4)  # jobs between two uploads
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(CLIENTS, len(jobs)))]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def has_created(self, jobs: int) -> bool:
        """Whether more than so many exist."""
        return self.notes.created > jobs

    def job_ids(self) -> list[str]:
        with self.notes.lock:
            return list(self.notes.promised)

    def _work(self) -> None:
        client = Client(self._urls, self.notes, self._is_over)
        with contextlib.closing(client), contextlib.suppress(OutOfTimeError):
            while (planned := self._next()) is not None:
                try:
                    self._run(client, planned)
                except OutOfTimeError:
                    raise
                except Exception as error:  # noqa: BLE001 - told in the report, and the next job is due
                    self.notes.fault("client_failed", job=planned.number, why=repr(error)[:400])

    def _next(self) -> PlannedJob | None:
        with self.notes.lock:
            return self._left.pop() if self._left else None

    def _dataset(self, client: Client, number: int) -> str:
        if number % self._every == 0:
            kind = number // self._every
            archive = self._archive
            if kind % 2:  # other bytes, which have to be checked anew
                archive = self._archive.with_name(f"shapes-{number}.zip")
                archive.write_bytes(self._archive.read_bytes())
                with zipfile.ZipFile(archive, "a") as opened:
                    opened.comment = f"upload {number}".encode()
            self._datasets.append(client.upload(archive, f"dataset-{number}"))
        while not self._datasets:
            time.sleep(AGAIN_S)
            if self._is_over():
                raise OutOfTimeError("no dataset")
        return self._datasets[-1]

    def _run(self, client: Client, planned: PlannedJob) -> None:
        promised = client.create(planned, self._dataset(client, planned.number), f"job-{planned.number}")
        if promised is None:
            return
        follower = None
        if planned.is_followed:
            follower = threading.Thread(target=self._follow, args=(promised.job_id,), daemon=True)
            follower.start()
        self._act(client, planned, promised)
        job = client.wait(promised)
        if planned.action == "retry" and job["status"] in ("failed", "cancelled"):
            again = client.retry(planned, promised.job_id, f"job-{planned.number}-again")
            if again is not None:
                client.wait(again)
        if follower is not None:
            follower.join()

    def _follow(self, job_id: str) -> None:
        client = Client(self._urls, self.notes, self._is_over)
        with contextlib.closing(client):
            client.follow(job_id)

    @staticmethod
    def _act(client: Client, planned: PlannedJob, promised: Promised) -> None:
        if planned.action is None:
            return
        time.sleep(planned.action_after_s)
        match planned.action:
            case "cancel" | "retry":  # a job to retry is one that was cancelled
                promised.cancelled = client.act(promised, "cancel")
            case "stop":
                promised.stopped = client.act(promised, "stop")
            case "pause":
                if client.act(promised, "pause"):
                    job = client.until(promised.job_id, lambda job: job["status"] == "paused" or job["is_terminal"])
                    while not job["is_terminal"] and not client.act(promised, "resume"):
                        job = client.job(promised.job_id)
