"""In a real browser, on the whole service: from an empty page to a tuned adapter, also with restarts in between."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect

from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e.test_job import FAST
from tests.pages.tour import CHROMIUM, chromium
from tests.stack import started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)"),
    pytest.mark.timeout(900),  # they train, on machines that do other things as well
]

PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: neither a script nor what it loads nor the policy of the site."""
    context = browser.new_context(accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    found = context.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    yield found
    # A server that is away, and one that refuses, are no fault of the page; that its files are there, others test.
    expected = ("Failed to load resource", "net::ERR", "htmx:")
    assert [each for each in wrong if not any(part in each for part in expected)] == []
    context.close()


def test_from_nothing_to_an_adapter_in_three_clicks(page: Page, tmp_path: Path) -> None:
    port = 0
    with started(tmp_path, tmp_path / "data", **FAST) as service:
        page.goto(service.url)
        page.get_by_role("button", name="Try it with demo data").click()  # 1
        page.wait_for_url("**/ui/datasets/ds_*")
        expect(page.locator(".state.ready")).to_be_visible(timeout=60_000)
        expect(page.locator(".tiles img").first).to_be_visible()
        page.get_by_role("button", name="Tune sam3-tiny on it").click()  # 2
        page.wait_for_url("**/ui/jobs/job_*")
        expect(page.locator("#status .state.running")).to_be_visible(timeout=60_000)
        expect(page.locator(".curve canvas").first).to_be_visible(timeout=120_000)
        server = service.child("api")
        assert server is not None
        server.kill()  # another is started in its place, and the page finds it by itself
        expect(page.locator("#log")).to_contain_text("modules adapted", timeout=120_000)
        port = int(service.url.rpartition(":")[2])
        before = page.locator("#events li").count()
    expect(page.locator("#lost")).to_be_visible(timeout=30_000)
    with started(tmp_path, tmp_path / "data", **FAST, port=port):
        expect(page.locator("#lost")).to_be_hidden(timeout=60_000)
        expect(page.locator("#status .state.succeeded")).to_be_visible(timeout=400_000)
        wait_until(lambda: page.locator("#events li").count() > before, 10)
        expect(page.locator("#results")).to_contain_text("Base against tuned")
        expect(page.locator(".panels img").first).to_be_visible()
        page.get_by_label("After epoch").focus()
        page.keyboard.press("Home")
        expect(page.locator("#epoch-shown")).to_have_text("1")
        expect(page.locator("#learning img[src$='/0/tuned?epoch=1']")).to_be_visible()
        picture = tmp_path / "shapes.jpg"
        source = page.locator(".panels img").first.get_attribute("src")
        picture.write_bytes(page.request.get(f"http://127.0.0.1:{port}{source}").body())
        page.get_by_label("Image", exact=True).set_input_files(picture)
        page.get_by_label("What to find").fill("heart")
        page.get_by_role("button", name="Find").click()
        expect(page.locator("#try-pictures figure")).to_have_count(3, timeout=120_000)
        expect(page.locator("#try-pictures")).to_contain_text("Base: heart")
        with page.expect_download() as download:  # 3
            page.get_by_role("link", name="Download adapter").click()
        assert download.value.path().stat().st_size > 100_000
        page.get_by_role("link", name="Its model").click()
        page.wait_for_url("**/ui/models/model_*")
        with page.expect_download(timeout=120_000) as download:
            page.get_by_role("button", name="For transformers").click()
        assert download.value.suggested_filename.endswith("peft.zip")
        page.get_by_role("button", name="Measure").click()
        page.wait_for_url("**/ui/comparisons/cmp_*")
        expect(page.get_by_role("heading", name="does better")).to_be_visible(timeout=120_000)


def test_a_key_signs_in_and_what_a_form_gets_wrong_is_told_beside_it(page: Page, tmp_path: Path) -> None:
    with started(tmp_path, tmp_path / "data", **FAST, require_keys=True) as service:
        environment = os.environ | {"SAM3_DATA_DIR": str(tmp_path / "data")}
        command = [sys.executable, "-m", "service.cli", "keys", "create", "--name", "me", "--scope", "admin"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        page.goto(f"{service.url}/ui/access")
        page.get_by_label("API key").fill(done.stdout.strip())
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/ui/access")
        page.get_by_label("Who or what uses it").fill("build server")
        page.get_by_label("Project").fill("team")
        page.get_by_role("button", name="Make key").click()
        expect(page.locator("#secret-text")).to_contain_text("sam3_")
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#keys-title + .scroll")).to_contain_text("build server")
        page.get_by_label("Who or what uses it").fill("x")
        page.get_by_role("button", name="Make key").click()  # without a project, which only an admin's has not
        expect(page.locator("#toast .bad")).to_contain_text("project")
        page.goto(f"{service.url}/ui/datasets")
        page.get_by_role("button", name="Use the demo data").click()
        page.wait_for_url("**/ui/datasets/ds_*")
        page.get_by_role("link", name="Choose how").click()
        page.get_by_label("Name").fill("mine")
        for section in ("Data", "Training"):
            page.locator("summary", has_text=section).click()
        page.get_by_label("Cache features").select_option("on")
        page.get_by_label("Prompts", exact=True).fill("[1, 2]")
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("[aria-invalid]")).to_have_attribute("name", "config.dataset.prompts")
        page.get_by_label("Prompts", exact=True).fill("{}")
        page.get_by_role("button", name="Start training").click()
        page.wait_for_url("**/ui/jobs/job_*")
        expect(page.locator("#config-title ~ .grid pre").first).to_contain_text('"cache_features": "on"')
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status .state.cancelled")).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/ui/sign-in")


def test_an_upload_goes_on_after_the_server_was_away(page: Page, tmp_path: Path) -> None:
    archive = tmp_path / "shapes.zip"
    draw([str(archive), "--train", "6", "--valid", "2"])
    with archive.open("ab") as file, zipfile.ZipFile(file, "a") as opened:
        opened.writestr("train/padding.bin", os.urandom(30 * 2**20))
    with started(tmp_path, tmp_path / "data", **FAST) as service:
        port = int(service.url.rpartition(":")[2])
        page.goto(f"{service.url}/ui/datasets")
        page.route("**/parts/3", lambda route: route.abort())
        page.get_by_label("Archive of images").set_input_files(archive)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.locator("#upload-told")).to_contain_text("Trying again")
    page.unroute("**/parts/3")
    with started(tmp_path, tmp_path / "data", **FAST, port=port):
        page.wait_for_url("**/ui/datasets/ds_*", timeout=90_000)
        expect(page.locator(".state.ready, .state.invalid")).to_be_visible(timeout=60_000)
