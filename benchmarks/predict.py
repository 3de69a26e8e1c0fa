"""How long is a prediction over HTTP, with the base in memory: of one model, and of two models in turn?

The service as `make serve` starts it, with `sam3-tiny`: one client asks about one image and one prompt, again and
again. `queued` is the part from the stored question to the stored answer, as the service says it; the first question
loads the base.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from shutil import make_archive
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks import record
from demo.__main__ import running_service
from sam3_lora.client import Client
from sam3_lora.synthetic.coco_export import write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable

TARGET_S, POLL_INTERVAL_S = 0.5, 0.05
JOB: dict[str, Any] = {
    "name": "benchmark",
    "base_model": "sam3-tiny",
    "config": {
        "dataset": {"generic_negatives": 0},
        "training": {"max_steps": 2, "use_amp": False, "num_workers": 0},
        "evaluation": {"baseline": False, "absent_prompts": []},
    },
}


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "drawn", concepts=["heart"], train=4, valid=2, seed=7)
        image = (folder / "drawn" / "valid" / "scene_0001.jpg").read_bytes()
        archive = Path(make_archive(str(folder / "shapes"), "zip", folder / "drawn"))
        with running_service(folder / "service") as url:
            with Client(url) as trained:
                models = [train(trained, archive) for _ in range(2)]
            client = httpx.Client(base_url=f"{url}/v1", timeout=300)
            first = ask(client, models[0], image)
            rows: list[dict[str, Any]] = [{"models": "first question", **first}]
            rows += [
                {"models": kind, **summary(ask(client, each, image) for each in islice(cycle(asked), options.count))}
                for kind, asked in (("one", models[:1]), ("two in turn", models))
            ]
    for row in rows:
        print(f"  {row}", flush=True)
    load = round(os.getloadavg()[0], 1)
    print(f"written to {record.write('predict', rows, path=options.output, count=options.count, load_average=load)}")
    print(f"predict ratio={TARGET_S / rows[1]['seconds']:.2f} target=1.00 (1 is a median of {TARGET_S:g} s)")
    return 0


def train(client: Client, archive: Path) -> str:
    """Id of the model of a new, very short job."""
    return client.jobs.create(client.datasets.upload(archive), **JOB).wait().model().id


def ask(client: httpx.Client, model_id: str, image: bytes) -> dict[str, float]:
    """Seconds that a client waits for one prediction, and how many of them it was queued or worked on."""
    began = time.monotonic()
    files = {"file": ("scene.jpg", image), "prompt": (None, b"heart")}
    answer = client.post(f"/models/{model_id}/predict", files=files).raise_for_status().json()
    while answer["finished_at"] is None:  # the base takes longer to load than a request waits
        time.sleep(POLL_INTERVAL_S)
        answer = client.get(f"/predictions/{answer['id']}").json()
    seconds = time.monotonic() - began
    created, finished = (datetime.fromisoformat(answer[key]) for key in ("created_at", "finished_at"))
    return {"seconds": round(seconds, 3), "queued": round((finished - created).total_seconds(), 3)}


def summary(times: Iterable[dict[str, float]]) -> dict[str, float]:
    """Medians, and what 95 of 100 stay below."""
    rows = list(times)
    seconds = [row["seconds"] for row in rows]
    return {
        "seconds": round(median(seconds), 3),
        "queued": round(median(row["queued"] for row in rows), 3),
        "seconds_p95": round(quantiles(seconds, n=20)[-1], 3),
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks predict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=50, help="questions of each kind")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/predict.json")
    return parser.parse_args(arguments)
