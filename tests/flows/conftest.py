"""A real browser for tests of what a person sees."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.flows.stack_parts import BROWSERS, OFFLINE


@pytest.fixture
def page() -> Iterator[Page]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("NO BROWSER, so nothing was clicked; `apt-get install chromium` and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", OFFLINE])
        found = browser.new_page(viewport={"width": 1400, "height": 1200})
        found.set_default_timeout(60_000)
        yield found
        browser.close()
