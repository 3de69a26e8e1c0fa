"""The users of the load benchmark. Locust runs it in an environment of its own: it imports nothing of the product."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_pacing, events, task

JOBS = Path(os.environ["LOAD_JOBS"])
"""File with the ids of the jobs that run now, one a line; rewritten as they change."""
DATASET_ID = os.environ["LOAD_DATASET"]
POLLERS, FOLLOWERS, SUBMITTERS = (int(os.environ[f"LOAD_{kind}"]) for kind in ("POLLERS", "FOLLOWERS", "SUBMITTERS"))
keys = count()


def _some_job() -> str:
    return random.choice(JOBS.read_text().split())


def _lines(answer: Any) -> Iterator[str]:
    """Lines of a stream as soon as they are whole."""
    rest = ""
    for part in answer.iter_content(4096):
        *whole, rest = (rest + part).split("\n")
        yield from whole


class Poller(FastHttpUser):
    """Asks for one job every two seconds, as it was told to, with the tag of the last answer."""

    fixed_count = POLLERS
    wait_time = constant_pacing(2)

    def on_start(self) -> None:
        self.job_id, self.tag = _some_job(), ""

    @task
    def poll(self) -> None:
        headers = {"If-None-Match": self.tag} if self.tag else {}
        path = f"/v1/jobs/{self.job_id}"
        with self.client.get(path, headers=headers, name="poll", catch_response=True) as answer:
            if answer.status_code not in (200, 304):
                answer.failure(f"status {answer.status_code}")
                return
            answer.success()
        if answer.status_code == 200:
            self.tag = answer.headers["ETag"]
            if answer.json()["is_terminal"]:
                self.on_start()


class Submitter(FastHttpUser):
    """Creates a job every two seconds and reads it back."""

    fixed_count = SUBMITTERS
    wait_time = constant_pacing(2)

    @task
    def submit(self) -> None:
        body = {"name": "load", "base_model": "sam3-tiny", "dataset_id": DATASET_ID, "priority": 10}
        key = {"Idempotency-Key": f"load-{os.getpid()}-{next(keys)}"}
        with self.client.post("/v1/jobs", json=body, headers=key, name="submit", catch_response=True) as answer:
            if answer.status_code != 201:
                answer.failure(f"status {answer.status_code}: {answer.text[:200]}")
                return
        self.client.get(answer.headers["Location"], name="read back")


class Follower(FastHttpUser):
    """Follows a job's events to their end, checks that none is missing, and goes on with another job."""

    fixed_count = FOLLOWERS
    wait_time = constant_pacing(0)
    network_timeout = 600.0

    @task
    def follow(self) -> None:
        path = f"/v1/jobs/{_some_job()}/events/stream"
        began, seen, fault = time.perf_counter(), 0, "the stream ended without `done`"
        with self.client.get(path, stream=True, name="stream opened", catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                return
            answer.success()
            for text in _lines(answer):
                if text.startswith("id: "):
                    if int(text[4:]) != seen + 1:
                        fault = f"event {text[4:]} after {seen}"
                        break
                    seen += 1
                elif text == "event: done":
                    fault = ""
                    break
        events.request.fire(
            request_type="SSE",
            name="stream followed to its end",
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=seen,
            exception=RuntimeError(fault) if fault else None,
        )


@events.quitting.add_listener
def write_figures(environment: Any, **_: Any) -> None:
    entries = environment.stats.entries.values()
    figures = [
        {
            "request": entry.name,
            "requests": entry.num_requests,
            "failures": entry.num_failures,
            "p50_ms": entry.get_response_time_percentile(0.5),
            "p99_ms": entry.get_response_time_percentile(0.99),
        }
        for entry in entries
    ]
    errors = [f"{error.name}: {error.error} ({error.occurrences} times)" for error in environment.stats.errors.values()]
    errors += [f"{each['msg']} ({each['count']} times)" for each in environment.runner.exceptions.values()]
    Path(os.environ["LOAD_FIGURES"]).write_text(json.dumps({"requests": figures, "errors": errors}))
