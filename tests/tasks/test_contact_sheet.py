"""A contact sheet in a real browser: from its folder, from the page server and from S3 it loads what one scrolls to."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks.prefect_api.artifacts import show_page
from tasks.settings import PROJECT, Settings
from tasks.store.pages import served
from tests.curation.test_contact_sheet import ROW
from zimage.curation.contact_sheet import THUMBNAILS, Tile, contact_sheet
from zimage.photos.pictures import jpeg

NUM_PHOTOS = 400
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("NO BROWSER, so nothing was scrolled; `apt-get install chromium` and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a contact sheet of many photos, each of its own colour."""
    folder = tmp_path / "workspaces" / "ada"
    detect = folder / "data" / "detect"
    (detect / THUMBNAILS).mkdir(parents=True)
    tiles = []
    for number in range(NUM_PHOTOS):
        photo = f"{number:016x}"
        pixels = np.full((240, 320, 3), (number % 256, number // 256, 99), np.uint8)
        (detect / THUMBNAILS / f"{photo}.jpg").write_bytes(jpeg(pixels, 80))
        row = ROW.model_copy(update={"photo": photo, "name": f"{number:04}.jpg", "width": 320, "height": 240})
        tiles.append(Tile(row, (320, 240), []))
    sheet = contact_sheet(tiles, engine="dlib", unused_overrides=[])
    (detect / "contact_sheet.html").write_text(sheet)
    return folder


def shown_in_store(settings: Settings, workspace: Path) -> str:
    """Show the sheet as a stage does, and return the link that Prefect has."""

    @flow
    def shows() -> None:
        show_page(settings, workspace, "detect", shared=True)

    shows()
    with get_client(sync_client=True) as client:
        keys = ArtifactFilterKey(any_=["ada-contact-sheet"])
        found = max(client.read_artifacts(artifact_filter=ArtifactFilter(key=keys)), key=lambda each: each.created)
    link = re.search(r"\]\((.*)\)", str(found.data))
    assert link is not None
    return link[1]


def until(met: Callable[[], bool]) -> None:
    """Wait here and not in the page, whose policy forbids scripts."""
    end = time.monotonic() + 120
    while not met():
        assert time.monotonic() < end
        time.sleep(0.2)


def loads_as_one_scrolls(page: Page, address: str) -> None:
    def loaded() -> int:
        return int(page.evaluate("[...document.images].filter(each => each.naturalWidth == 320).length"))

    page.set_default_timeout(120_000)
    page.goto(address)
    until(lambda: page.evaluate("document.images[0].naturalWidth == 320"))
    assert page.evaluate("document.images.length") == NUM_PHOTOS
    at_first = loaded()
    page.evaluate("document.images[document.images.length - 1].scrollIntoView()")
    until(lambda: page.evaluate("document.images[document.images.length - 1].naturalWidth == 320"))

    assert 0 < at_first < NUM_PHOTOS / 2
    assert loaded() > at_first


def test_from_its_folder(workspace: Path, browser: Any) -> None:
    sheet = workspace / "data" / "detect" / "contact_sheet.html"
    assert sheet.stat().st_size < 2000 * NUM_PHOTOS

    loads_as_one_scrolls(browser.new_page(), sheet.as_uri())


def test_from_the_page_server(workspace: Path, browser: Any, prefect_server: None, tmp_path: Path) -> None:
    with served(tmp_path / "store", 0) as address:
        settings = Settings(PROJECT, tmp_path / "workspaces", str(tmp_path / "store"), pages=address)
        loads_as_one_scrolls(browser.new_page(), shown_in_store(settings, workspace))


def test_from_a_bucket(workspace: Path, browser: Any, prefect_server: None, s3: None, tmp_path: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="sheets")
    settings = Settings(PROJECT, tmp_path / "workspaces", "s3://sheets/zimage")

    first = shown_in_store(settings, workspace)
    loads_as_one_scrolls(browser.new_page(), first)
    loads_as_one_scrolls(browser.new_page(), shown_in_store(settings, workspace))
