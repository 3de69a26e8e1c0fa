"""Train in a build: send the dataset, train, and fail the build unless the tuned model is good enough.

    python train_in_ci.py run.yaml data/ --build 1234 --at-least 0.6

Needs `pip install sam3-lora-service` and, in the environment, SAM3_API_URL and (if the service asks) SAM3_API_KEY. Run
again with the same --build, after the build machine went away for example, it goes on with the same job.

Exit codes: 0 good enough; 1 the job failed, or its model is not good enough; 2 a wrong configuration or dataset;
3 the service cannot be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from sam3_lora.client import Client
from sam3_lora.client.errors import (
    ClientError,
    ConnectionFailedError,
    DatasetNotReadyError,
    JobNotSucceededError,
    RateLimitedError,
    ServerError,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML with lora, dataset, training, evaluation")
    parser.add_argument("dataset", type=Path, help="folder or archive")
    parser.add_argument("--build", required=True, help="names this build: the same one makes no second job")
    parser.add_argument("--base-model", default="sam3", choices=["sam3", "sam3-tiny"])
    parser.add_argument("--at-least", type=float, default=0.0, help="least value of the job's metric")
    parser.add_argument("--summary", type=Path, default=Path("training.json"), help="file for what came out")
    options = parser.parse_args()
    try:
        return train(options)
    except (ConnectionFailedError, ServerError, RateLimitedError) as error:
        print(f"the service cannot be reached, or failed: {error}", file=sys.stderr)
        return 3
    except DatasetNotReadyError as error:
        print(f"the dataset cannot be used: {error}", file=sys.stderr)
        return 2
    except JobNotSucceededError as error:
        print(f"the job did not succeed: {error}", file=sys.stderr)
        return 1
    except ClientError as error:
        print(error, file=sys.stderr)
        return 2


def train(options: argparse.Namespace) -> int:
    tag = f"build-{options.build}"
    with Client() as client:
        job = next(iter(client.jobs.list(tag=tag, limit=1)), None)
        if job is None:
            dataset = client.datasets.upload(options.dataset).wait()
            job = client.jobs.create(
                dataset,
                base_model=options.base_model,
                config=yaml.safe_load(options.config.read_text(encoding="utf-8")),
                name=f"build {options.build}",
                tags=["ci", tag],
                metadata={"commit": os.environ.get("GITHUB_SHA", os.environ.get("CI_COMMIT_SHA", "unknown"))},
            )
        print(f"job {job.id}: {client.base_url}/ui/jobs/{job.id}", flush=True)
        job.wait(progress=True)
        best = job.best_checkpoint()
        print(f"{best.metric}: {best.value} after epoch {best.epoch}")
        summary: dict[str, Any] = {"job": job.id, "metric": best.metric, "value": best.value}
        summary["sha256"] = {file.name: file.sha256 for file in best.files}
        options.summary.write_text(json.dumps(summary) + "\n", encoding="utf-8")
        if best.value is None or best.value < options.at_least:
            print(f"not good enough: {options.at_least:g} is asked for", file=sys.stderr)
            return 1
        job.download("adapter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
