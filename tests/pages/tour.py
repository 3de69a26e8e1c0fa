"""A service with something on every page, and the way through them: for pictures, and tests of how pages look.

`python -m tests.pages.tour [FOLDER]` (`make screenshots`) takes the pictures: light and dark, wide and narrow.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.test_job import FAST
from tests.stack import started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")
TUNING = {
    "lora": {"rank": 16, "alpha": 32.0},
    "training": {"max_epochs": 4, "batch_size": 4, "learning_rate": 2e-3, "use_amp": False},
}
WITH_CURVES = ("job", "job-running", "compare")
IN_README, TOP_HEIGHT = "job-wide-light", 1690
COLOURS = 128  # of a picture: the pages have few


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's own, headless."""
    with sync_playwright() as playwright:
        # In a container there is no namespace for a sandbox; the pages are ours.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def furnish(url: str, config: dict[str, Any], *, wait_s: float) -> dict[str, str]:
    """Fill an empty service through its API until every page has something to show; the pages' addresses by name."""
    with httpx.Client(base_url=url, timeout=60) as client:

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            made: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
            return made

        def until(path: str, *states: str) -> None:
            wait_until(lambda: client.get(path).json()["status"] in states, wait_s)

        good = post("/v1/datasets", {"name": "Hearts and crosses", "source": {"type": "demo"}})["id"]
        files = {"file": ("pallets.zip", _with_faults(), "application/zip")}
        bad = client.post("/v1/datasets", data={"name": "Pallets, unchecked"}, files=files).raise_for_status().json()
        until(f"/v1/datasets/{good}", "ready")
        until(f"/v1/datasets/{bad['id']}", "invalid")
        body = {"base_model": "sam3-tiny", "dataset_id": good, "config": config}
        done = post("/v1/jobs", {"name": "First try", "tags": ["demo"], **body})["id"]
        slower = config | {"training": config["training"] | {"learning_rate": 5e-4}}
        other = post("/v1/jobs", {"name": "Slower rate", **body, "config": slower})["id"]
        broken = post("/v1/jobs", {"name": "On unchecked data", "base_model": "sam3-tiny", "dataset_id": good,
                                   "priority": 1})["id"]  # fmt: skip
        client.post(f"/v1/jobs/{broken}/cancel").raise_for_status()
        until(f"/v1/jobs/{done}", "succeeded")
        until(f"/v1/jobs/{other}", "succeeded")
        model = client.get(f"/v1/jobs/{done}").json()["result"]["model_id"]
        compared = post("/v1/comparisons", {"dataset_id": good, "models": [model, "sam3-tiny"][::-1]})["id"]
        until(f"/v1/comparisons/{compared}", "succeeded")
        few = {"dataset": {"limit_images": 16}, "evaluation": {"baseline": False}}  # four trainings, one after another
        brief = config | few | {"training": config["training"] | {"max_epochs": 1}}
        ranks = {"lora.rank": {"values": [4, 16]}, "training.learning_rate": {"values": [5e-4, 2e-3]}}
        trials = {"name": "Rank and rate", "job": body | {"config": brief}, "parameters": ranks}
        swept = post("/v1/sweeps", trials)["id"]
        until(f"/v1/sweeps/{swept}", "succeeded")
        endless = {"training": config["training"] | {"max_epochs": 1000}}
        going = post("/v1/jobs", {"name": "Many epochs", **body, "config": endless})["id"]
        wait_until(lambda: (client.get(f"/v1/jobs/{going}").json()["progress"] or {}).get("step") is not None, wait_s)
        post("/v1/api_keys", {"name": "build server", "project": "warehouse", "scopes": ["read", "write"]})
        post("/v1/webhook_endpoints", {"url": "https://example.org/hooks", "events": ["job.succeeded", "job.failed"]})
    return {
        "jobs": "/ui/jobs",
        "job": f"/ui/jobs/{done}",
        "job-running": f"/ui/jobs/{going}",
        "new-job": f"/ui/new-job?dataset={good}",
        "models": "/ui/models",
        "model": f"/ui/models/{model}",
        "comparison": f"/ui/comparisons/{compared}",
        "sweeps": "/ui/sweeps",
        "sweep": f"/ui/sweeps/{swept}",
        "compare": f"/ui/compare?first={done}&second={other}",
        "datasets": "/ui/datasets",
        "dataset": f"/ui/datasets/{good}",
        "dataset-invalid": f"/ui/datasets/{bad['id']}",
        "workers": "/ui/workers",
        "access": "/ui/access",
        "sign-in": "/ui/sign-in",
    }


def _with_faults() -> bytes:
    """A dataset with one fault of several kinds."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "tan").save(picture, "JPEG")
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0,
              "segmentation": [[1, 1, 21, 1, 21, 21, 1, 21]]}  # fmt: skip
    annotations = [
        square,
        square | {"id": 2, "segmentation": [[1, 1, 2, 2]]},
        square | {"id": 3, "category_id": 9},
        square | {"id": 4, "bbox": [1, 1, -5, 2], "segmentation": []},
    ]
    body = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
                   {"id": 2, "file_name": "gone.jpg", "width": 64, "height": 48}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "pallet"}],
    }  # fmt: skip
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train/_annotations.coco.json", json.dumps(body))
        archive.writestr("train/a.jpg", picture.getvalue())
    return content.getvalue()


def views(browser: Browser, url: str, addresses: dict[str, str]) -> Iterator[tuple[str, Page]]:
    """Every page in every size and scheme, quiet, with all its pictures."""
    for size, viewport in SIZES.items():
        for scheme in SCHEMES:
            context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            page = context.new_page()
            for name, address in addresses.items():
                page.goto(url + address)
                page.evaluate("for (const image of document.images) image.loading = 'eager'")
                if name in WITH_CURVES:
                    page.wait_for_selector(".curve canvas")
                page.wait_for_timeout(600)
                yield f"{name}-{size}-{scheme}", page
            context.close()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/pages")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, started(Path(scratch), Path(scratch) / "data", **FAST) as service:
        sys.stdout.write("tuning two models on drawn data, some minutes...\n")
        addresses = furnish(service.url, TUNING, wait_s=900)
        with chromium() as browser:
            for name, page in views(browser, service.url, addresses):
                taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
                if name == IN_README:
                    top = taken.crop((0, 0, taken.width, TOP_HEIGHT))
                    top.quantize(COLOURS).save(folder / "first-look.png", optimize=True)
                taken.quantize(COLOURS).save(folder / f"{name}.png", optimize=True)
                sys.stdout.write(f"{folder / name}.png\n")


if __name__ == "__main__":
    main()
