"""Pages in a browser: a choice of query without a script, both schemes, a phone's width, printed; many queries."""

import html
import shutil
import subprocess
from pathlib import Path

import pytest
from report_example import fake_data, fake_results

from irm_jax.evaluation.report import write

pytestmark = pytest.mark.nightly
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>
const page = document.documentElement, shown = [...document.querySelectorAll('.chosen > *')];
const visible = () => shown.filter(list => list.offsetParent).length;
const before = visible(), tiles = document.querySelectorAll('#section-2 input');
tiles[2].click();
const chosen = document.querySelectorAll('#section-2 .chosen > *')[2].offsetParent !== null;
const drawn = [...document.querySelectorAll('.chosen use')].filter(u => u.getBoundingClientRect().width > 20).length;
document.title = [page.scrollWidth, before, visible(), chosen, drawn].join(' ');
</script>"""


def browse(page: Path, *flags: str) -> str:
    """Runs headless Chromium on a page and returns what it prints."""
    profile = page.parent / "profile"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 500])  # headless windows are at least 500 pixels wide
def test_the_chosen_list_is_shown_and_nothing_overflows(tmp_path: Path, width: int) -> None:
    path = Path(write.write_report(tmp_path, fake_results(), fake_data()))
    # Only the copy of the test may run a script.
    text = path.read_text().replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    found = browse(tmp_path / "copy.html", "--dump-dom", f"--window-size={width},900")
    title = html.unescape(found[found.index("<title>") + 7 : found.index("</title>")]).split()
    assert int(title[0]) <= width
    assert title[1:4] == ["6", "6", "true"]  # one list per test set, and another one after the click
    assert int(title[4]) == 6 * (10 + 1) + 1  # ten images and a query; ctcc also has an instruction image


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_it_prints(tmp_path: Path) -> None:
    path = Path(write.write_report(tmp_path, fake_results(), fake_data()))
    browse(path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").stat().st_size > 100_000


def test_forty_queries_stay_below_eight_megabytes(tmp_path: Path) -> None:
    path = write.write_report(tmp_path, fake_results(), fake_data(40))
    assert Path(path).stat().st_size < 8_000_000
