"""Annotation files made to break readers: each case is named and asserts what the report says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from sam3_lora.coco.report import DatasetIssueError, DatasetReport
from sam3_lora.coco.schema import load
from sam3_lora.coco.validate import validate
from tests.coco.datasets import HEIGHT, WIDTH, picture, records, write_json

SMALL = records(3)
PIXELS = HEIGHT * WIDTH
DIGITS = "9" * 4000
DEEP = "[" * 500 + "]" * 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training split whose JSON each case overwrites."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "train").mkdir()
    for index in range(3):
        (root / "train" / f"img_{index}.jpg").write_bytes(picture(index))
    return root


def spoiled(pointer: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(SMALL)
    *parents, last = [int(key) if key.isdigit() else key for key in pointer.split("/")]
    target: Any = content
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return content


def raw(pointer: str, text: str) -> str:
    """JSON with unchecked text as one value."""
    return json.dumps(spoiled(pointer, "@@")).replace('"@@"', text)


def mask(value: Any) -> dict[str, Any]:
    return spoiled("annotations/0/segmentation", value)


def box(value: Any) -> dict[str, Any]:
    return spoiled("annotations/0/bbox", value)


def rle(size: Any, counts: Any) -> dict[str, Any]:
    return mask({"size": size, "counts": counts})


def comb() -> list[float]:
    """A zigzag whose outline is far longer than any object's."""
    return [number for index in range(300_000) for number in (float(index % 2 * WIDTH), 1.0 + index % 7)]


WHOLE_FILE = {
    "empty file": "",
    "not json": "hello",
    "truncated": json.dumps(SMALL)[:-20],
    "two values": "{} {}",
    "not utf-8": "\ud800",
    "null": "null",
    "list": "[]",
    "number": "1",
    "text": '"images"',
    "NaN": raw("annotations/0/bbox", "[NaN, 0, 1, 1]"),
    "Infinity": raw("annotations/0/bbox", "[0, 0, Infinity, 1]"),
    "-Infinity": raw("annotations/0/bbox", "[0, 0, -Infinity, 1]"),
    "duplicate key": raw("annotations/0/area", '1, "area": 2'),
    "duplicate top key": json.dumps(SMALL)[:-1] + ', "images": []}',
    "5,000 digits": raw("annotations/0/area", "9" * 5000),
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep value": raw("info", "[" * 5000 + "]" * 5000),
    "comment": "/* */ {}",
    "empty object": "{}",
}

CASES: dict[str, tuple[object, str]] = {
    **{name: (text, "json_invalid") for name, text in WHOLE_FILE.items()},
    "images missing": (spoiled("images", ...), "json_invalid"),
    "images an object": (spoiled("images", {}), "json_invalid"),
    "annotations null": (spoiled("annotations", None), "json_invalid"),
    "categories a text": (spoiled("categories", "abc"), "json_invalid"),
    "image null": (spoiled("images/0", None), "json_invalid"),
    "annotation a list": (spoiled("annotations/0", [1]), "json_invalid"),
    "category a number": (spoiled("categories/1", 3), "json_invalid"),
    "category name missing": (spoiled("categories/1/name", ...), "json_invalid"),
    "category name blank": (spoiled("categories/1/name", "  "), "json_invalid"),
    "category name long": (spoiled("categories/1/name", "x" * 10_000), "json_invalid"),
    "category name surrogate": (spoiled("categories/1/name", "\ud800"), "json_invalid"),
    "category id twice": (spoiled("categories/2/id", 1), "category_duplicate"),
    "category name twice": (spoiled("categories/2/name", "bolt"), "category_duplicate"),
    "category id missing": (spoiled("categories/1/id", ...), "id_missing"),
    "image id missing": (spoiled("images/0/id", ...), "id_missing"),
    "image id null": (spoiled("images/0/id", None), "id_missing"),
    "image id true": (spoiled("images/0/id", True), "id_missing"),
    "image id float": (spoiled("images/0/id", 1.5), "id_missing"),
    "image id list": (spoiled("images/0/id", []), "id_missing"),
    "image id huge": (spoiled("images/0/id", 2**63), "id_missing"),
    "image id 4,000 digits": (raw("images/0/id", DIGITS), "id_missing"),
    "image id blank": (spoiled("images/0/id", ""), "id_missing"),
    "image id surrogate": (spoiled("images/0/id", "\udfff"), "id_missing"),
    "image id long": (spoiled("images/0/id", "x" * 300), "id_missing"),
    "image id twice": (spoiled("images/1/id", 0), "id_duplicate"),
    "annotation id missing": (spoiled("annotations/0/id", ...), "id_missing"),
    "annotation id object": (spoiled("annotations/0/id", {}), "id_missing"),
    "annotation id twice": (spoiled("annotations/1/id", 0), "id_duplicate"),
    "file_name missing": (spoiled("images/0/file_name", ...), "image_missing"),
    "file_name a number": (spoiled("images/0/file_name", 5), "image_missing"),
    "file_name nul": (spoiled("images/0/file_name", "img_0.jpg\0"), "image_missing"),
    "file_name surrogate": (spoiled("images/0/file_name", "\ud800"), "image_missing"),
    "file_name long": (spoiled("images/0/file_name", "x" * 100_000), "image_missing"),
    "file_name absolute": (spoiled("images/0/file_name", "/etc/passwd"), "image_missing"),
    "file_name a folder": (spoiled("images/0/file_name", "."), "image_missing"),
    "width missing": (spoiled("images/0/width", ...), "image_size_mismatch"),
    "width zero": (spoiled("images/0/width", 0), "image_size_mismatch"),
    "width negative": (spoiled("images/0/width", -40), "image_size_mismatch"),
    "width text": (spoiled("images/0/width", "40"), "image_size_mismatch"),
    "width true": (spoiled("images/0/width", True), "image_size_mismatch"),
    "width huge": (spoiled("images/0/width", 10**15), "image_too_large"),
    "width 4,000 digits": (raw("images/0/width", DIGITS), "image_too_large"),
    "width 1e400": (raw("images/0/width", "1e400"), "image_size_mismatch"),
    "image_id unknown": (spoiled("annotations/0/image_id", 99), "image_missing"),
    "image_id missing": (spoiled("annotations/0/image_id", ...), "image_missing"),
    "image_id text for number": (spoiled("annotations/0/image_id", "0"), "image_missing"),
    "image_id false for 0": (spoiled("annotations/0/image_id", False), "image_missing"),
    "image_id unhashable": (spoiled("annotations/0/image_id", {}), "image_missing"),
    "category_id unknown": (spoiled("annotations/0/category_id", 99), "category_unknown"),
    "category_id missing": (spoiled("annotations/0/category_id", ...), "category_unknown"),
    "category_id unhashable": (spoiled("annotations/0/category_id", [1]), "category_unknown"),
    "category_id 1.0": (spoiled("annotations/0/category_id", 1.0), "category_unknown"),
    "iscrowd 2": (spoiled("annotations/0/iscrowd", 2), "json_invalid"),
    "iscrowd text": (spoiled("annotations/0/iscrowd", "0"), "json_invalid"),
    "box zero width": (box([1, 1, 0, 5]), "bbox_invalid"),
    "box negative": (box([1, 1, 5, -5]), "bbox_invalid"),
    "box 3 numbers": (box([1, 1, 5]), "bbox_invalid"),
    "box 5 numbers": (box([1, 1, 5, 5, 5]), "bbox_invalid"),
    "box text": (box("1 1 5 5"), "bbox_invalid"),
    "box with null": (box([None, 1, 5, 5]), "bbox_invalid"),
    "box with true": (box([True, 1, 5, 5]), "bbox_invalid"),
    "box 1e400": (raw("annotations/0/bbox", "[0, 0, 1e400, 5]"), "bbox_invalid"),
    "box 4,000 digits": (raw("annotations/0/bbox", f"[0, 0, {DIGITS}, 5]"), "bbox_invalid"),
    "box 1e308": (box([-1e308, 0, 1e308, 5]), "bbox_invalid"),
    "box outside": (box([WIDTH, 0, 5, 5]), "bbox_invalid"),
    "box above": (box([0, -50, 5, 5]), "bbox_invalid"),
    "box nested deeply": (raw("annotations/0/bbox", DEEP), "bbox_invalid"),
    "no box, no mask": (
        SMALL | {"annotations": [{"id": 1, "image_id": 0, "category_id": 1}]},
        "bbox_invalid",
    ),
    "polygon 2 points": (mask([[1, 1, 5, 5]]), "polygon_too_few_points"),
    "polygon odd": (mask([[1, 1, 5, 5, 9, 9, 3]]), "polygon_too_few_points"),
    "polygon empty": (mask([[]]), "polygon_too_few_points"),
    "polygon flat": (mask([1, 1, 5, 1, 5, 5]), "json_invalid"),
    "polygon points": (mask([[[1, 1], [5, 1], [5, 5]]]), "mask_out_of_bounds"),
    "polygon null": (mask([None]), "json_invalid"),
    "polygon 1e9": (mask([[0, 0, 1e9, 0, 1e9, 1e9]]), "mask_out_of_bounds"),
    "polygon 1e308": (mask([[0, 0, 1e308, 0, 5, 5]]), "mask_out_of_bounds"),
    "polygon 1e400": (raw("annotations/0/segmentation", "[[0, 0, 1e400, 0, 5, 5]]"), "mask_out_of_bounds"),
    "polygon 4,000 digits": (raw("annotations/0/segmentation", f"[[0, 0, {DIGITS}, 0, 5, 5]]"), "mask_out_of_bounds"),
    "polygon outside": (mask([[50, 1, 60, 1, 60, 9]]), "mask_out_of_bounds"),
    "polygon comb": (mask([comb()]), "mask_out_of_bounds"),
    "polygon text": (mask([["0", "0", "5", "0", "5", "5"]]), "mask_out_of_bounds"),
    "mask text": (mask("abc"), "json_invalid"),
    "mask 0": (mask(0), "json_invalid"),
    "mask true": (mask(True), "json_invalid"),
    "rle without size": (mask({"counts": [PIXELS]}), "rle_size_mismatch"),
    "rle without counts": (mask({"size": [HEIGHT, WIDTH]}), "rle_size_mismatch"),
    "rle width first": (rle([WIDTH, HEIGHT], [0, PIXELS]), "rle_size_mismatch"),
    "rle absurd size": (rle([10**6, 10**6], [0, 10**12]), "rle_size_mismatch"),
    "rle float size": (rle([30.0, 40.0], [0, PIXELS]), "rle_size_mismatch"),
    "rle deep size": (raw("annotations/0/segmentation", f'{{"size": [{DEEP}, 1]}}'), "rle_size_mismatch"),
    "rle short": (rle([HEIGHT, WIDTH], [5, 5]), "rle_size_mismatch"),
    "rle long": (rle([HEIGHT, WIDTH], [5, PIXELS]), "rle_size_mismatch"),
    "rle negative": (rle([HEIGHT, WIDTH], [-5, PIXELS + 5]), "rle_size_mismatch"),
    "rle huge": (rle([HEIGHT, WIDTH], [2**64]), "rle_size_mismatch"),
    "rle floats": (rle([HEIGHT, WIDTH], [float(PIXELS)]), "rle_size_mismatch"),
    "rle text garbage": (rle([HEIGHT, WIDTH], "ÿÿÿ"), "rle_size_mismatch"),
    "rle text endless number": (rle([HEIGHT, WIDTH], "o" * 1000), "rle_size_mismatch"),
    "rle text short": (rle([HEIGHT, WIDTH], "5"), "rle_size_mismatch"),
    "empty rle without box": (
        SMALL | {"annotations": [{"id": 1, "image_id": 0, "category_id": 1,
                                  "segmentation": {"size": [HEIGHT, WIDTH], "counts": [PIXELS]}}]},
        "mask_empty",
    ),
}  # fmt: skip

WARNINGS: dict[str, tuple[object, str]] = {
    "box past the edge": (box([30, 5, 15, 10]), "bbox_invalid"),
    "polygon past the edge": (mask([[30, 5, 45, 5, 45, 15]]), "mask_out_of_bounds"),
    "polygon on a line": (mask([[1, 1, 5, 5, 9, 9]]), "mask_empty"),
    "rle of zeros": (rle([HEIGHT, WIDTH], [PIXELS]), "mask_empty"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_json_is_reported(folder: Path, case: str) -> None:
    content, code = CASES[case]
    write_json(folder / "train", content)  # type: ignore[arg-type]
    report = validate(folder)
    assert report.status == "invalid"
    assert code in {issue.code for issue in report.issues if issue.severity == "error"}
    check_report(report)


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("file_name")])
def test_hostile_json_does_not_load(folder: Path, case: str) -> None:
    write_json(folder / "train", CASES[case][0])  # type: ignore[arg-type]
    with pytest.raises(DatasetIssueError):
        load(folder / "train" / "_annotations.coco.json")


@pytest.mark.parametrize("case", WARNINGS)
def test_tolerable_annotation_is_a_warning(folder: Path, case: str) -> None:
    content, code = WARNINGS[case]
    write_json(folder / "train", content)  # type: ignore[arg-type]
    report = validate(folder)
    assert report.status == "valid"
    assert [issue.code for issue in report.issues if issue.code != "too_few_images"] == [code]
    assert len(load(folder / "train" / "_annotations.coco.json").annotations) == 3


def test_rounding_past_the_edge_is_no_issue(folder: Path) -> None:
    write_json(folder / "train", box([-0.4, -1, WIDTH + 1, HEIGHT + 1.5]))
    assert [issue.code for issue in validate(folder).issues] == ["too_few_images"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**18, -1, 0, 1, "img_0.jpg", "../x", "\ud800", 1e300]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with NumPy 2
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_gives_a_report(folder: Path, data: st.DataObject) -> None:
    content: Any = copy.deepcopy(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        mutate(content, data)
    write_json(folder / "train", content)
    report = validate(folder)
    check_report(report)
    if report.status == "valid":
        for annotation in load(folder / "train" / "_annotations.coco.json").annotations:
            decode(annotation.segmentation)


def decode(segmentation: list[list[float]] | dict[str, Any] | None) -> None:
    """What passes must be safe for mask code, which crashes on what must not pass."""
    if segmentation is None:
        return
    encoded = reference.frPyObjects(segmentation, HEIGHT, WIDTH) if not compressed(segmentation) else segmentation
    decoded = reference.decode(encoded)
    assert decoded.shape[:2] == (HEIGHT, WIDTH)
    assert decoded.max(initial=0) <= 1


def compressed(segmentation: list[list[float]] | dict[str, Any]) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)


def mutate(content: Any, data: st.DataObject) -> None:
    """Replace, remove or repeat a value somewhere in the tree."""
    target = content
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(target[key], dict | list) and data.draw(st.integers(0, 5)) > 0
        if not deeper:
            break
        target = target[key]
    action = data.draw(st.sampled_from(["replace", "remove", "repeat"]))
    if action == "remove":
        del target[key]
    elif action == "repeat" and isinstance(target, list):
        target.append(copy.deepcopy(target[key]))
    else:
        target[key] = data.draw(JUNK)


def check_report(report: DatasetReport) -> None:
    """The report is JSON in valid Unicode, and its numbers agree."""
    text = json.dumps(report.to_dict(), allow_nan=False, ensure_ascii=False)
    text.encode()
    assert DatasetReport.from_dict(json.loads(text)).to_dict() == report.to_dict()
    counts = {"error": 0, "warning": 0}
    for issue in report.issues:
        counts[issue.severity] += issue.count
        assert len(issue.message) < 600
        assert issue.hint or issue.count > 1
    assert (counts["error"], counts["warning"]) == (report.errors, report.warnings)
