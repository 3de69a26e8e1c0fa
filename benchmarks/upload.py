"""Does a large archive arrive in constant memory? Peak memory of the API while 1 GB comes as a form, and in parts.

A real `sam3-service api` on SQLite and a local folder, after a small upload of each kind to warm it up. Everything is
on one machine: the client's reading and the server's hashing and writing share its cores and its disk.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks import record
from benchmarks.api_process import api, free_port, peak_mb
from service.shared.settings import Settings

MB = 10**6
BUDGET_MB = 64.0
WARM_UP_MB = 8
PART_BYTES = 64 * 2**20


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small, large = (archive(Path(folder), size) for size in (WARM_UP_MB, options.megabytes))
        for way, send in (("form", send_form), ("parts", send_parts)):
            settings = Settings(data_dir=Path(folder) / way, port=free_port())
            url = f"http://127.0.0.1:{settings.port}/v1"
            with api(settings) as process, httpx.Client(base_url=url, timeout=600) as client:
                send(client, small)
                before, began = peak_mb(process), time.monotonic()
                sha256 = send(client, large)
                seconds, growth = time.monotonic() - began, peak_mb(process) - before
            if sha256 != digest(large):
                raise RuntimeError("the archive arrived changed")
            row = {"way": way, "peak_mb": before + growth, "growth_mb": growth, "mb_per_s": options.megabytes / seconds}
            rows.append({name: round(value, 1) if isinstance(value, float) else value for name, value in row.items()})
            print(f"  {rows[-1]}", flush=True)
    if options.megabytes >= 1000 or options.output is not None:
        print(f"written to {record.write('upload', rows, path=options.output, megabytes=options.megabytes)}")
    worst = max(row["growth_mb"] for row in rows)
    print(f"upload ratio={worst / BUDGET_MB:.2f} target=1.00 (at most: growth of peak memory to {BUDGET_MB:.0f} MB)")
    return 0


def archive(folder: Path, megabytes: int) -> Path:
    """A tar with one file."""
    path = folder / f"{megabytes}.tar"
    piece = bytes(range(256)) * (MB // 256 + 1)
    with path.open("wb") as file:
        member = tarfile.TarInfo("train/a.bin")
        member.size = megabytes * MB
        file.write(member.tobuf())
        for _ in range(megabytes):
            file.write(piece[:MB])
        file.write(bytes(-file.tell() % 512 + 1024))
    return path


def send_form(client: httpx.Client, path: Path) -> str:
    """SHA-256 of what arrived by one multipart request."""
    with path.open("rb") as file:
        return str(client.post("/datasets", files={"file": file}).raise_for_status().json()["sha256"])


def send_parts(client: httpx.Client, path: Path) -> str:
    """SHA-256 of what arrived as an upload in parts."""
    body = {"filename": path.name, "bytes": path.stat().st_size, "part_bytes": PART_BYTES}
    upload = client.post("/uploads", json=body).raise_for_status().json()
    with path.open("rb") as file:
        for number in range(1, upload["part_count"] + 1):
            part = io.BytesIO(file.read(PART_BYTES))
            client.put(f"/uploads/{upload['id']}/parts/{number}", content=part).raise_for_status()
    return str(client.post(f"/uploads/{upload['id']}/complete").raise_for_status().json()["sha256"])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks upload", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the archive")
    parser.add_argument("--folder", type=Path, help="where everything is kept (default: the temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/upload.json")
    return parser.parse_args(arguments)
