"""The receiver of the guide, as written, is told by a service that is really running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.guides import ADDRESS, example
from tests.servers import free_port
from tests.stack import started, wait_until

GUIDE = "docs/webhooks.md"


def test_the_receiver_of_the_guide(tmp_path: Path) -> None:
    port = free_port()
    private = f"127.0.0.1:{port}"
    with started(tmp_path, tmp_path / "data", webhook_private_hosts=private) as service:

        def run(name: str) -> str:
            script = example(GUIDE, name).replace(ADDRESS, service.url)
            script = script.replace("https://example.org/", f"http://{private}/")
            command = ["bash", "-c", "set -euo pipefail\n" + script]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
            return done.stdout

        run("create")
        endpoint = json.loads((tmp_path / "endpoint.json").read_text())
        output = tmp_path / "receiver.out"
        with output.open("wb") as out:
            receiver = subprocess.Popen(
                [sys.executable, "-c", example(GUIDE, "receiver").replace("9000", str(port))],
                env=os.environ | {"WEBHOOK_SECRET": endpoint["secret"]},
                stdout=out,
                stderr=subprocess.DEVNULL,
            )
        try:
            assert "webhook.test" in run("try")
            wait_until(lambda: "webhook.test" in output.read_text())
            listed = service.get(endpoint["urls"]["deliveries"])["data"]
            wait_until(lambda: service.get(listed[0]["urls"]["self"])["status"] == "succeeded")
        finally:
            receiver.kill()
            receiver.wait()
    assert output.read_text() == f"webhook.test {endpoint['id']} None\n"
