"""Do checkpoint files download as fast as static files? MB/s of the API and of a bare file server, in turn.

The same file, from a real `sam3-service api` (SQLite, local folder) and from Starlette's FileResponse under the same
uvicorn; the client only counts bytes. Medians of alternating downloads: the file is in the page cache.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import record
from benchmarks.api_process import api, free_port, running
from benchmarks.live_job import open_database, running_job
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.settings import Settings
from service.shared.storage import Storage

MB = 10**6
NAME = "adapter_model.safetensors"
BARE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/file", lambda _: FileResponse(sys.argv[1]))])
uvicorn.run(app, port=int(sys.argv[2]), log_config=None)
"""


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / NAME
        file.write_bytes(bytes(range(256)) * (options.megabytes * MB // 256))
        settings = Settings(data_dir=Path(folder) / "data", port=free_port())
        bare_port = free_port()
        with api(settings), running(["-c", BARE, str(file), str(bare_port)], bare_port):
            paths = {"service": (settings.port, publish(settings, file)), "bare": (bare_port, "/file")}
            rates: dict[str, list[float]] = {name: [] for name in paths}
            for attempt in range(1 + options.repeats):
                for name, (port, path) in paths.items():
                    rate = download(port, path, file.stat().st_size)
                    if attempt > 0:
                        rates[name].append(rate)
    rows: list[dict[str, Any]] = [{"server": name, "mb_per_s": round(median(each), 1)} for name, each in rates.items()]
    for row in rows:
        print(f"  {row}")
    if options.megabytes >= 500 or options.output is not None:
        print(f"written to {record.write('download', rows, path=options.output, megabytes=options.megabytes)}")
    print(f"download ratio={rows[0]['mb_per_s'] / rows[1]['mb_per_s']:.2f} target=0.80 (of the bare server's rate)")
    return 0


def publish(settings: Settings, file: Path) -> str:
    """Address of the file as a checkpoint's."""
    database, storage = open_database(settings), Storage(settings)
    job = running_job(database)
    with database.write() as unit:
        stored = storage.put_file(f"jobs/{job.id}/{NAME}", file)
        manifest = CheckpointManifest("best", 1, 1, None, None, {NAME: stored})
        checkpoint = unit.checkpoints.publish(job.id, job.epoch, manifest)
    database.close()
    return f"/v1/checkpoints/{checkpoint.id}/files/{NAME}"


def download(port: int, path: str, size_bytes: int) -> float:
    """MB/s of one download."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    buffer, received = bytearray(2**20), 0
    began = time.monotonic()
    connection.request("GET", path)
    response = connection.getresponse()
    while count := response.readinto(buffer):
        received += count
    seconds = time.monotonic() - began
    connection.close()
    if received != size_bytes:
        raise RuntimeError(f"{received} of {size_bytes} bytes arrived from {path}")
    return received / MB / seconds


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks download", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=500, help="size of the file")
    parser.add_argument("--repeats", type=int, default=5, help="downloads that count, after one to warm up")
    parser.add_argument("--folder", type=Path, help="where everything is kept (default: the temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/download.json")
    return parser.parse_args(arguments)
