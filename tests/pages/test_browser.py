"""In a real browser, on the whole service: from an empty page to a tuned adapter, also with restarts in between."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.test_job import FAST
from tests.stack import started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # In a container there is no namespace for a sandbox; the pages are ours.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: neither a script nor what it loads nor the policy of the site."""
    context = browser.new_context(accept_downloads=True)
    found = context.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    yield found
    # A server that was killed on purpose is no fault of the page.
    assert [each for each in wrong if "ERR_CONNECTION_REFUSED" not in each and "ERR_INCOMPLETE" not in each] == []
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
        with page.expect_download() as download:  # 3
            page.get_by_role("link", name="Download adapter").click()
        assert download.value.path().stat().st_size > 100_000
