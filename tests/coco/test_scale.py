from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

from sam3_lora.coco.isolation import ProcessLimits, validate_isolated
from sam3_lora.coco.report import Issue, IssueCode, IssueLog
from tests.coco.datasets import records, write_json, write_split

COUNT = 100_000


def annotations(bbox: list[float]) -> list[dict[str, Any]]:
    polygon = [[4.25, 4.25, 20.5, 4.25, 20.5, 20.75, 12.5, 25.0, 4.25, 20.75]]
    box = {"bbox": bbox, "segmentation": polygon, "iscrowd": 0, "area": 256.0}
    return [{"id": n, "image_id": n % 12, "category_id": 1 + n % 2, **box} for n in range(COUNT)]


def test_100_000_annotations_in_bounded_memory_and_time(tmp_path: Path) -> None:
    write_split(tmp_path / "train", records() | {"annotations": annotations([4, 4, 16, 16])}, 0)
    started = time.monotonic()
    report = validate_isolated(tmp_path, process_limits=ProcessLimits(memory_bytes=600 * 1024**2))
    assert report.to_dict()["issues"] == []
    assert report.instances == COUNT
    assert time.monotonic() - started < 15


def test_100_000_faults_make_a_short_report(tmp_path: Path) -> None:
    write_split(tmp_path / "train", records(), 0)
    write_json(tmp_path / "train", records() | {"annotations": annotations([4, 4, 0, 16])})
    report = validate_isolated(tmp_path)
    assert report.errors == COUNT + 1  # and no usable annotation
    assert report.truncated
    assert len(report.issues) == 52
    assert len(json.dumps(report.to_dict())) < 50_000


def test_issue_log_keeps_a_bounded_number() -> None:
    log = IssueLog()
    tracemalloc.start()
    for index in range(COUNT):
        log.add(Issue(code=IssueCode.IMAGE_MISSING, message=f"image {index}"))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 200_000
    assert log.report().errors == COUNT
