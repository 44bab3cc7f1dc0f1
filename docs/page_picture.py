"""Makes docs/search.jpg: `python docs/page_picture.py INDEX --sentence "a person in a red shirt"`.

A picture of the search page with the answer to a sentence, in Chromium (pip install playwright; extra `search`). For
an index of drawn people alone, such as `python -m irm_jax.search demo --no_page` makes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from irm_jax.search import page  # noqa: E402
from irm_jax.search.index import Index  # noqa: E402


def shot(uri: str, sentence: str, width: int, height: int) -> bytes:
    """Returns the page as PNG, once the hits of the sentence are there."""
    index = Index(uri)
    index.warm()
    app = page.launch(page.Page(index), page.Access.of("127.0.0.1", 0, None))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.set_default_timeout(300_000)
        tab.goto(app.local_url)
        tab.wait_for_selector("#search")
        tab.fill("#words textarea", sentence)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#hits button.thumbnail-item img")
        tab.wait_for_timeout(3000)
        made: bytes = tab.screenshot()
        browser.close()
    app.close()
    return made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("index", help="of drawn people")
    p.add_argument("--sentence", default="a person in a red shirt")
    p.add_argument("--out", default=str(ROOT / "docs" / "search.jpg"))
    p.add_argument("--width", type=int, default=1280)
    p.add_argument("--height", type=int, default=900)
    options = p.parse_args()
    image = Image.open(io.BytesIO(shot(options.index, options.sentence, options.width, options.height)))
    image.convert("RGB").save(options.out, quality=80, optimize=True)
    print(f"{options.out}: {Path(options.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
