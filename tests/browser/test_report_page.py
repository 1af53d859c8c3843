"""The report of a scan in a real browser: needs playwright and Chromium, run with `pytest -m browser -n 0`."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import run
from result_folders import scored_row, write_evaluation, write_results

from aprilcli.io.scores_csv import ScoreRow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

HOSTILE = "<script>alert(1)</script>.png"
OTHER = 'b/a,"quoted".png'
SCORES = {HOSTILE: 4.0, OTHER: 3.5, "b/good.png": 1.5, "c/2.png": 1.2, "c/10.png": 1.1}
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or playwright's own."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """A function that opens a folder's report; errors, requests and dialogs of the page fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    wrong: list[str] = []

    def open_report(out: Path) -> Page:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        url = (out / "report.html").as_uri()
        own = ("data:", "blob:", url)  # saving labels makes a blob
        page.on("request", lambda request: request.url.startswith(own) or wrong.append(request.url))
        page.goto(url)
        return page

    yield open_report
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [scored_row(path, score) for path, score in SCORES.items()]
    rows.append(ScoreRow("unreadable.png", "error", error="unreadable.png: <b>cannot be read</b>"))
    write_results(folder / "out", folder / "images", rows)
    assert run("report", folder / "out").exit_code == 0
    return folder / "out"


def eventually(page: Page, condition: Callable[[], bool]) -> bool:
    """Wait up to ten seconds; playwright's own wait for a function is refused by the page's content policy."""
    for _ in range(500):
        if condition():
            return True
        page.wait_for_timeout(20)
    return False


def paths(page: Page) -> list[str]:
    return page.locator("tbody .path bdi").all_text_contents()


def title(page: Page) -> str:
    return page.locator("#viewer-title").text_content() or ""


def test_it_shows_the_rows_without_errors_and_requests(out: Path, open_page: Any) -> None:
    page = open_page(out)
    assert paths(page) == [HOSTILE, OTHER, "b/good.png", "c/2.png", "c/10.png", "unreadable.png"]
    page.wait_for_selector("tbody tr:first-child .tile img:nth-child(2)")
    assert page.evaluate("[...document.querySelectorAll('.tile img')].every(img => img.complete && img.naturalWidth)")
    assert page.locator("b:has-text('cannot be read')").count() == 0


def test_it_sorts_by_each_column_in_both_directions(out: Path, open_page: Any) -> None:
    page = open_page(out)
    head = page.locator("th.path")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert paths(page)[2:5] == ["b/good.png", "c/2.png", "c/10.png"]  # numbers by their value
    page.locator("th.score button").click()
    page.locator("th.score button").click()
    assert page.locator("th.score").get_attribute("aria-sort") == "ascending"
    assert paths(page)[0] == "c/10.png"
    assert paths(page)[-1] == "unreadable.png"  # rows without a value are last in both directions


def test_it_filters_by_text_verdict_folder_and_score(out: Path, open_page: Any) -> None:
    page = open_page(out)
    page.keyboard.press("/")
    page.keyboard.type("SCRIPT")
    assert paths(page) == [HOSTILE]
    assert page.locator("#shown").text_content() == "1 of 6 images"
    page.get_by_role("button", name="Reset").click()
    assert eventually(page, lambda: len(paths(page)) == 6)
    page.select_option("#folder", "b/")
    assert paths(page) == [OTHER, "b/good.png"]
    page.locator("button.count.normal").click()
    assert paths(page) == ["b/good.png"]
    page.select_option("#folder", "")
    page.fill("#score-high", "1.15")
    assert paths(page) == ["c/10.png"]


def test_the_viewer_opens_steps_zooms_and_closes_by_key(out: Path, open_page: Any) -> None:
    page = open_page(out)
    page.locator("tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert title(page) == OTHER
    assert page.locator("#marks text").all_text_contents() == ["1"]
    page.keyboard.press("ArrowLeft")
    assert title(page) == HOSTILE
    before = page.locator("#canvas").bounding_box()["width"]
    page.keyboard.press("+")
    assert page.locator("#canvas").bounding_box()["width"] == pytest.approx(1.5 * before)
    page.keyboard.press("0")
    page.mouse.move(300, 300)
    page.mouse.wheel(0, -400)
    assert eventually(page, lambda: page.locator("#canvas").bounding_box()["width"] > 1.5 * before)
    page.keyboard.press("m")
    assert page.locator("#layer").evaluate("layer => layer.style.opacity") == "0"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert eventually(
        page, lambda: page.evaluate("document.activeElement.dataset.index") == "0"
    )  # the image that was shown last


def test_arrow_keys_change_the_slider_when_it_has_the_focus(out: Path, open_page: Any) -> None:
    page = open_page(out)
    page.locator("tbody tr").first.click()
    page.locator("#opacity").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#opacity").input_value() == "99"
    assert title(page) == HOSTILE


def test_labels_are_kept_and_saved_as_csv(out: Path, open_page: Any, tmp_path: Path) -> None:
    page = open_page(out)
    assert page.locator("#save").is_disabled()
    page.locator("tbody tr").first.focus()
    page.keyboard.press("d")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="False alarm").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("d")
    page.keyboard.press("u")
    page.keyboard.press("Escape")
    assert page.locator("#label-count").text_content() == "2 images labeled"
    page.reload()
    assert page.locator("tbody .label .badge").all_text_contents() == ["defect", "false alarm"]
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    content = (tmp_path / "labels.csv").read_bytes()
    assert content.startswith(b"path,label\r\n")
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream))[1:] == [[HOSTILE, "defect"], [OTHER, "good"]]


def test_bytes_of_names_that_are_not_utf_8_are_saved_as_they_are(tmp_path: Path, open_page: Any) -> None:
    out = write_results(tmp_path / "out", tmp_path, [scored_row("caf\udce9 \u65e5.png", 4.0)], draw=False)
    run("report", out)
    page = open_page(out)
    assert paths(page) == ["caf\\xe9 \u65e5.png"]
    page.locator("tbody tr").first.focus()
    page.keyboard.press("f")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "labels.csv")
    expected = b"path,label\r\ncaf\xe9 " + "\u65e5.png,good\r\n".encode()
    assert (tmp_path / "labels.csv").read_bytes() == expected


def test_five_thousand_rows_are_added_as_they_are_needed(tmp_path: Path, open_page: Any) -> None:
    rows = [scored_row(f"{number % 50}/{number}.png", number / 1000) for number in range(5000)]
    out = write_results(tmp_path / "out", tmp_path / "images", rows, draw=False, options=[("maps", False)])
    run("report", out)
    page = open_page(out)
    assert page.locator("#shown").text_content() == "5000 images"
    assert page.locator("tbody tr").count() <= 300
    page.locator(".scroller").evaluate("box => { box.scrollTop = box.scrollHeight }")
    assert eventually(page, lambda: page.locator("tbody tr").count() > 100)
    assert page.locator("tbody tr").count() <= 500
    page.fill("#search", "49/4")
    assert page.locator("tbody tr").count() <= 100


def test_it_fits_a_phone_and_prints(out: Path, open_page: Any, tmp_path: Path) -> None:
    page = open_page(out)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("tbody tr").first.click()
    assert page.locator("#stage").bounding_box()["height"] > 300
    page.keyboard.press("Escape")
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert page.locator("tbody tr").last.is_visible()


def test_the_page_of_an_evaluation_opens_its_images(tmp_path: Path, open_page: Any) -> None:
    assert run("report", write_evaluation(tmp_path)).exit_code == 0
    page = open_page(tmp_path / "out")
    assert page.locator(".charts svg").count() == 3
    page.locator(".cards button").first.click()
    assert title(page) == "bolt/test/scratch/002.png"
    assert page.locator("#layer").is_visible()
    page.keyboard.press("ArrowRight")
    assert title(page) == "bolt/test/scratch/001.png"
    page.keyboard.press("Escape")
    assert eventually(page, lambda: page.evaluate("document.activeElement.dataset.index") == "1")
