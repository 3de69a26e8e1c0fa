"""What the demo says to the service: plain HTTP, as any client would."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL_INTERVAL_S = 0.5


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Api:
    """The service's HTTP API at one base URL."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/v1", timeout=60)

    def upload(self, archive: Path, name: str) -> dict[str, Any]:
        with archive.open("rb") as file:
            return self._json("POST", "/datasets", data={"name": name}, files={"file": (archive.name, file)})

    def wait_for_dataset(self, dataset_id: str) -> dict[str, Any]:
        """Poll until the dataset is checked.

        Raises:
            DemoError: with the report's errors, if it cannot be trained on.
        """
        dataset: dict[str, Any] = {"status": "processing"}
        while dataset["status"] == "processing":
            time.sleep(POLL_INTERVAL_S)
            dataset = self._json("GET", f"/datasets/{dataset_id}")
        if dataset["status"] != "ready":
            report = self._json("GET", f"/datasets/{dataset_id}/validation")
            errors = [i for i in report["issues"] if i["severity"] == "error"]
            lines = [f"  {i['code']}: {i['message']} ({i['file'] or i['image'] or ''})" for i in errors[:10]]
            raise DemoError("\n".join([f"the dataset is {dataset['status']}:", *lines]))
        return dataset

    def create_job(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/jobs", json=body)

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job again and again, until and including its terminal state."""
        while True:
            job = self._json("GET", f"/jobs/{job_id}")
            yield job
            if job["is_terminal"]:
                return
            time.sleep(POLL_INTERVAL_S)

    def logs(self, job_id: str) -> str:
        return self._http.get(f"/jobs/{job_id}/logs").text

    def download_adapter(self, job: dict[str, Any], folder: Path) -> None:
        """Fetch the files of the job's best checkpoint and check their hashes.

        Raises:
            DemoError: if a file's sha256 is not what the service said.
        """
        checkpoints = self._json("GET", f"/jobs/{job['id']}/checkpoints")["data"]
        best = next(c for c in checkpoints if c["id"] == job["best"]["checkpoint_id"])
        folder.mkdir(parents=True, exist_ok=True)
        for file in best["files"]:
            content = self._http.get(file["url"].removeprefix("/v1")).raise_for_status().content
            if hashlib.sha256(content).hexdigest() != file["sha256"]:
                raise DemoError(f"{file['name']} arrived damaged: its sha256 differs")
            (folder / file["name"]).write_bytes(content)

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._http.request(method, path, **request)
        if response.is_error:
            body = response.json()
            faults = [f"  {fault['pointer']}: {fault['message']}" for fault in body.get("errors") or []]
            raise DemoError("\n".join([f"{method} {path}: {response.status_code} {body['detail']}", *faults]))
        answer: dict[str, Any] = response.json()
        return answer
