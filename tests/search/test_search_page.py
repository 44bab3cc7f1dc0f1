"""The page in Chromium: upload, words, filter, "more like this", errors; not one request leaves the machine."""

from __future__ import annotations

import gc
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irm_jax.search.index import Index
from irm_jax.search.store import SearchError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.nightly]  # of Gradio's and Playwright's own


@pytest.fixture(scope="module")
def site(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The address of a served page, and a browser."""
    pytest.importorskip("gradio", reason="needs pip install -e '.[search]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium, as from apt-get install chromium")
    from irm_jax.search import page

    folder = tmp_path_factory.mktemp("page")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "scratch")
    index.warm()
    prepared = [("a person in a red shirt", None, None)]
    app = page.launch(page.Page(index, prepared), page.Access.of("127.0.0.1", 0, None))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield app.local_url, browser
        browser.close()
    app.close()
    gc.collect()  # event loops of both libraries end here, where their warnings are not errors


@pytest.fixture
def tab(site: tuple[str, Any]) -> Iterator[Any]:
    """A tab with the page; fails if it asked any other machine for anything."""
    address, browser = site
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(120_000)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#search")
    yield opened
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    opened.close()


def hits(tab: Any, count: int) -> list[str]:
    """The captions of the hits, once there are so many."""
    tab.wait_for_function(f"document.querySelectorAll('#hits button.thumbnail-item').length == {count}")
    return tab.locator("#hits .caption-label").all_inner_texts()


def test_words_filter_and_more_like_this(tab: Any) -> None:
    assert "30 pictures" in tab.inner_text("#notes")
    tab.fill("#words textarea", "a person in a red shirt")
    tab.keyboard.press("Enter")
    assert hits(tab, 20)[0].startswith("1. ")
    tab.click("#filters button")
    tab.fill("#where input, #where textarea", "floor = 3")
    tab.keyboard.press("Enter")
    assert len(hits(tab, 6)) == 6
    assert "of 6 pictures" in tab.inner_text("#notes")
    tab.locator("#hits button.thumbnail-item").nth(2).click()
    tab.wait_for_selector("#detail:has-text('floor: 3')")
    tab.click("#more")
    hits(tab, 5)  # the chosen one is left out
    tab.fill("#where input, #where textarea", "floor = 99")
    tab.click("#search")
    tab.wait_for_function("document.querySelector('#notes').innerText.includes('No entry passes the filter')")
    tab.click("#clear")
    tab.wait_for_function("document.querySelector('#notes').innerText.includes('30 pictures')")


def test_an_uploaded_picture_finds_itself(tab: Any, crops_dir: Path) -> None:
    tab.set_input_files("#image input[type=file]", str(crops_dir / "07.png"))
    tab.wait_for_selector("#image img")
    tab.click("#search")
    found = hits(tab, 20)
    assert "hall" in found[0]
    assert "2026-01-08" in found[0]
    tab.locator("#hits button.thumbnail-item").first.click()
    tab.wait_for_selector("#detail:has-text('07.png')")


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        ("", "", "drop a picture of a person"),
        ("穿红衣服的女人", "", "knows no word"),
        ("a red shirt", "floor = 'x", "cannot be read at"),
    ],
)
def test_errors_are_shown(tab: Any, words: str, where: str, message: str) -> None:
    tab.fill("#words textarea", words)
    tab.click("#filters button")
    tab.fill("#where input, #where textarea", where)
    tab.click("#search")
    tab.wait_for_selector(f".toast-wrap >> text={message}")
    assert message in tab.inner_text("#notes")


def test_markup_in_a_message_is_text(tab: Any) -> None:
    tab.fill("#words textarea", "a red shirt")
    tab.click("#filters button")
    tab.fill("#where input, #where textarea", "<img src=x onerror=\"document.title='no'\"> **b**")
    tab.click("#search")
    tab.wait_for_function("document.querySelector('#notes').innerText.includes('<img src=x')")
    assert "**b**" in tab.inner_text("#notes")
    assert tab.title() == "Person search"


def test_a_prepared_query_is_answered_at_a_click(tab: Any) -> None:
    tab.click("button:has-text('a person in a red shirt')")
    hits(tab, 20)
    tab.locator("#hits button.thumbnail-item").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#picked #more")
    bar = tab.locator("#more").bounding_box()
    assert bar["y"] + bar["height"] <= 900  # in sight, however many hits there are


def test_a_file_that_is_no_picture_is_an_error(tab: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    tab.set_input_files("#image input[type=file]", str(tmp_path / "x.png"))
    tab.wait_for_timeout(1500)
    tab.click("#search")
    tab.wait_for_selector("text=is no readable")


def test_files_of_the_machine_are_not_served(tab: Any, site: tuple[str, Any], crops_dir: Path) -> None:
    for path in ("/etc/passwd", crops_dir / "crops.csv", Path(__file__)):
        assert tab.request.get(f"{site[0]}gradio_api/file={path}").status in (403, 404)


def test_hits_are_served_wherever_the_page_is_started(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of temporary files, or one above, as a service starts in /."""
    pytest.importorskip("gradio", reason="needs pip install -e '.[search]'")
    from irm_jax.search import page

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "scratch"))
    for name in ("scratch/hit.png", "crops.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    app = page.launch(page.Page(index), page.Access.of("127.0.0.1", 0, None))

    def status(name: str) -> int:
        try:
            with urllib.request.urlopen(f"{app.local_url}gradio_api/file={tmp_path / name}") as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert [status("scratch/hit.png"), status("crops.csv")] == [200, 403]
    app.close()
    gc.collect()


def test_a_refresh_without_a_pause_is_refused(index: Index) -> None:
    pytest.importorskip("gradio", reason="needs pip install -e '.[search]'")
    from irm_jax.search import page

    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SearchError, match="--refresh"):
            page.serve(index, page.Access.of("127.0.0.1", 0, None), refresh=seconds)


def test_another_address_needs_passwords(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs pip install -e '.[search]'")
    from irm_jax.search.page import Access

    with pytest.raises(SearchError, match="--password_file"):
        Access.of("0.0.0.0", 8000, None)
    for port in (-1, 99999):
        with pytest.raises(SearchError, match="a port is a number"):
            Access.of("127.0.0.1", port, None)
    file = tmp_path / "users"
    for text in ("", "ada", "ada:", ":secret"):
        file.write_text(text)
        with pytest.raises(SearchError, match="USER:PASSWORD"):
            Access.of("0.0.0.0", 8000, str(file))
    file.write_text("ada:se:cret\nbob:x\n")
    access = Access.of("0.0.0.0", 8000, str(file))
    assert access.allows("ada", "se:cret")
    assert not access.allows("ada", "x")
    assert not access.allows("eve", "")
