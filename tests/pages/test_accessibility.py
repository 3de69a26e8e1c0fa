"""What keeps people from using the pages: axe's rules on every page, in both schemes and sizes; the keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.e2e.test_job import FAST, QUICK
from tests.pages.tour import CHROMIUM, SIZES, chromium, furnish, views
from tests.stack import started

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)"),
    pytest.mark.timeout(900),  # they train, on machines that do other things as well
]

GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("tour")
    with started(folder, folder / "data", **FAST) as service:
        yield service.url, furnish(service.url, QUICK, wait_s=400)


def test_no_page_has_a_grave_finding_or_leaves_its_screen(browser: Browser, site: tuple[str, dict[str, str]]) -> None:
    found = []
    for name, page in views(browser, *site):
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in GRAVE:
                targets = [node["target"] for node in violation["nodes"]][:3]
                found.append((name, violation["id"], violation["impact"], targets))
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            found.append((name, "wider than the screen", "", []))
    assert not found, "\n".join(str(each) for each in found)


def test_the_keyboard_reaches_everything(browser: Browser, site: tuple[str, dict[str, str]]) -> None:
    url, addresses = site
    context = browser.new_context(viewport=SIZES["wide"])  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url + addresses["job"])
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Jobs", "Datasets", "Workers", "Access", "Download adapter", "Run again", "Delete", "Find"} <= reached
    context.close()


def test_the_theme_is_chosen_and_kept(browser: Browser, site: tuple[str, dict[str, str]]) -> None:
    url, addresses = site
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    page.goto(url + addresses["jobs"])
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.goto(url + addresses["job"])
    assert page.evaluate(ground) == dark
    context.close()
