"""Texts of clients that pretend to be something else: log lines, headers, commands of a terminal, pages."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sam3_lora.coco.images import decode
from sam3_lora.coco.preview import draw
from service.shared import log as logs
from tests.coco.datasets import picture, write_roboflow
from tests.service.conftest import Api, add_dataset, assert_problem, body, zip_bytes
from tests.service.conftest import api as api
from tests.service.conftest import served_api as served_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGED = '\r\nX-Evil: 1\r\n\r\n{"event": "forged"}\n\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2028'


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What is logged meanwhile."""
    found = io.StringIO()
    logs.configure("INFO", "test")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(found)
    yield found
    logs.configure("ERROR", "test")


def requests(api: Api) -> Iterator[httpx.Response]:
    quoted = str(httpx.QueryParams({"x": FORGED}))[2:].replace("+", "%20")
    dataset = add_dataset(api.database)
    named = body(dataset_id=dataset) | {"name": FORGED, "tags": [FORGED[-20:]], "metadata": {"key": FORGED}}
    yield api.client.get(f"/v1/jobs/{quoted}")
    yield api.client.get(f"/nope/{quoted}?tag={quoted}")
    yield api.client.put(f"/v1/datasets/{quoted}")
    created = api.client.post("/v1/jobs", json=named)
    yield created
    yield api.client.post("/v1/jobs", json=named | {FORGED: 1, "base_model": FORGED})
    yield api.client.post("/v1/datasets", files={"file": ("a.zip", zip_bytes())}, data={"name": FORGED})
    yield api.client.post("/v1/datasets", files={"file": (FORGED, zip_bytes())})
    yield api.client.post("/v1/uploads", json={"filename": FORGED, "bytes": 10})
    yield api.client.post("/v1/webhook_endpoints", json={"url": f"https://a.example/{FORGED}"})
    if created.status_code == 201:
        job = created.json()["id"]
        yield api.client.get(f"/v1/jobs/{job}")
        yield api.client.get(f"/v1/jobs/{job}/metrics", params={"format": "csv", "keys": FORGED})


def test_no_text_of_a_client_becomes_a_line_or_a_command_of_a_log(api: Api, output: io.StringIO) -> None:
    statuses = {answer.status_code for answer in requests(api)}
    assert statuses >= {404, 422}
    text = output.getvalue()
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert len([line for line in lines if line["event"] == "request"]) >= len(statuses)
    assert "forged" not in {line["event"] for line in lines}
    assert "owned" in text
    assert all(char == "\n" or " " <= char <= "~" for char in text)


def test_an_exception_with_a_forged_text_is_one_line(output: io.StringIO) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("x").exception("it failed: %s", FORGED)
    (line,) = output.getvalue().splitlines()
    assert json.loads(line)["event"] == f"it failed: {FORGED}"


def test_no_text_of_a_client_becomes_a_header(api: Api) -> None:
    for answer in requests(api):
        assert "x-evil" not in answer.headers
        assert not any("evil" in value.lower() for name, value in answer.headers.items())


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Request-Id", "If-None-Match", "Range", "traceparent"])
def test_a_header_of_a_client_does_not_come_back_as_another(api: Api, name: str) -> None:
    for value in (b"\xff\xfe", b'"; filename="evil', b"%0d%0aX-Evil: 1"):
        headers = [(name.encode(), value), (b"Content-Type", b"application/json")]
        answer = api.client.post("/v1/jobs", content=b"{}", headers=headers)
        assert 400 <= answer.status_code < 500
        assert "evil" not in "".join(answer.headers.values()).lower()


SCRIPT = b"<script>alert(1)</script>"


def hostile_pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = SCRIPT.decode(), 6
    text = PngInfo()
    text.add_text("Comment", SCRIPT.decode())
    return {
        "a page behind it": picture(1) + SCRIPT,
        "an archive behind it": picture(1) + zip_bytes(SCRIPT),
        "a comment": picture(1, comment=SCRIPT),
        "EXIF": picture(1, exif=exif.tobytes()),
        "EXIF that is none": picture(1, exif=b"Exif\0\0" + b"\xff" * 2000),
        "EXIF of ever the same place": picture(
            1, exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0"
        ),
        "a profile that is none": picture(1, icc_profile=SCRIPT * 3000),
        "PNG text": picture(1, format_="PNG", pnginfo=text),
    }


@pytest.mark.filterwarnings("ignore:.*EXIF")
@pytest.mark.parametrize("case", hostile_pictures())
def test_pictures_are_drawn_anew_and_carry_nothing_along(tmp_path: Path, case: str) -> None:
    content = hostile_pictures()[case]
    root = write_roboflow(tmp_path / "dataset")
    for path in (root / "train").glob("*.jpg"):
        path.write_bytes(content)
    target = tmp_path / "pictures"
    target.mkdir()
    decode(content, 10_000)  # as a check of the dataset does
    draw(root, target)
    drawn = [path.read_bytes() for path in target.iterdir() if path.suffix in (".jpg", ".jpeg", ".png", ".webp")]
    assert drawn
    assert not any(SCRIPT in each or b"PK\x03\x04" in each or b"Exif" in each for each in drawn)


def test_a_file_name_that_breaks_its_line_makes_the_form_malformed(api: Api) -> None:
    disposition = b'Content-Disposition: form-data; name="file"; filename="a\r\nX-Evil: 1\r\n\r\n<script>.zip"'
    form = b"--b\r\n" + disposition + b"\r\n\r\nPK\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = api.client.post("/v1/datasets", content=form, headers=headers)
    assert 400 <= answer.status_code < 500
    assert_problem(answer, answer.status_code, answer.json()["code"])
    assert not list(api.storage.list("datasets"))
