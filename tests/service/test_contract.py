"""The API against its own OpenAPI document: schemathesis with all checks, alone and in sequences of requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.service.conftest import Api, add_dataset, add_job, served
from tests.service.results import add_comparison, add_model, finish_comparison
from tests.service.webhooks import add_endpoint, deliveries

TIMEOUT_S = 280
NO_WAITING = {"estimate_wait_s": 0.0, "predict_wait_s": 0.0}  # for workers, of which there are none
CONFIG = Path(__file__).with_name("schemathesis.toml")


def test_every_operation_keeps_to_the_document(api: Api, tmp_path: Path) -> None:
    model_id = add_model(api.database, api.storage, tmp_path)
    add_job(api.database, add_dataset(api.database))
    known = {"model_id": model_id, "job_id": api.client.get(f"/v1/models/{model_id}").json()["job_id"]}
    known["checkpoint_id"] = api.client.get(f"/v1/jobs/{known['job_id']}/checkpoints").json()["data"][0]["id"]
    add_comparison(api.database, api.settings, ("sam3-tiny", model_id))
    known["comparison_id"] = finish_comparison(api.database, api.storage, tmp_path, (0.25, 0.5))
    known["endpoint_id"], _ = add_endpoint(api.database, api.settings)
    add_job(api.database, add_dataset(api.database))
    known["delivery_id"] = deliveries(api.database, known["endpoint_id"])[0].id
    known["fine_tuning_job_id"], known["file_id"] = known["job_id"], known["model_id"]
    config = tmp_path / "schemathesis.toml"
    # Reading what is there must be tried too; writing gets whatever ids are drawn.
    parameters = "".join(f'"path.{name}" = "{value}"\n' for name, value in known.items())
    config.write_text(CONFIG.read_text().replace("[operations.parameters]\n", f"[operations.parameters]\n{parameters}"))
    with served(api.settings.model_copy(update=NO_WAITING)) as fresh:
        done = _tried(config, fresh)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def _tried(config: Path, api: Api) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"{api.client.base_url}/openapi.json", "--url", f"{api.client.base_url}/v1", "--no-color"]
    command += ["--max-examples", "8", "--generation-deterministic"]
    return subprocess.run(command, capture_output=True, text=True, cwd=config.parent, timeout=TIMEOUT_S, check=False)
