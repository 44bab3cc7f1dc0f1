"""What the documentation's build makes of docstrings, of the source, and of a run's figures."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from irm_jax.config import load
from irm_jax.evaluation import figures
from irm_jax.evaluation.report import write

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def module(name: str) -> ModuleType:
    """Loads a script of docs/, which is no package."""
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))  # they import each other
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_docstring_is_paragraphs_entries_and_code() -> None:
    lines = [
        "Ranks `G` images, u8[H, W, 3], of *some* set_.", "It goes on.", "",
        "Args:", "    query, gallery: f32[Q, D]", "        and f32[G, D].", "    **labels: columns.", "",
        "    code = 1", "",
        "* one", "  more", "* two",
    ]  # fmt: skip
    assert module("docstrings").to_rst(lines) == [
        r"Ranks ``G``\  images, u8\[H, W, 3\], of \*some\* set\_. It goes on.", "", "",
        "**Args**", "", r"* **query, gallery**: f32\[Q, D\] and f32\[G, D\].", r"* **\*\*labels**: columns.", "",
        "::", "", "        code = 1", "",
        "* one more", "* two", "",
    ]  # fmt: skip


def test_the_reference_has_every_module_and_public_name(tmp_path: Path) -> None:
    module("api_pages").write(ROOT, tmp_path / "api")
    pages = {path.stem: path.read_text("utf-8") for path in (tmp_path / "api").glob("*.rst")}
    for top in ("irm_jax", "data_pipelines"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            assert parts[-1] == "__main__" or f".. py:module:: {name}\n" in pages[".".join(parts[:-1])]
    first = pages["irm_jax"]
    assert "\n.. py:class:: Embedder(checkpoint_dir: str | os.PathLike[str], *, step: Any=None" in first
    assert "\n   .. py:method:: embed_text(sentences: Iterable[str], *, dtype: Any=np.float32) -> np.ndarray" in first
    assert "\n   .. py:method:: from_pretrained(source" in first
    assert "_batches" not in first


def test_the_table_of_results_replaces_the_one_behind_its_marker() -> None:
    results_table = module("results_table")
    text = "a\n\n<!-- quickstart results -->\n| old |\n|---|\n\nb\n"
    assert results_table.replaced(text, "| new |") == "a\n\n<!-- quickstart results -->\n| new |\n\nb\n"
    with pytest.raises(SystemExit, match="no table"):
        results_table.replaced("a\n", "| new |")
    for path in results_table.PAGES:
        results_table.replaced(path.read_text("utf-8"), "| new |")


def test_the_table_of_results_has_the_headlines_and_their_controls() -> None:
    results_table = module("results_table")

    def row(task: str, mAP: float | None, system: str = "model", setting: str = "task_specific") -> figures.Figure:
        free = {"gallery": "union", "gallery_instruction": "neutral"} if setting == "task_free" else {}
        return figures.Figure(
            test_set=task, task=task, protocol="market", setting=setting, system=system, mAP=mAP, **free
        )

    tasks = results_table.TASKS
    rows = [row(task, 0.1 * number) for number, task in enumerate(tasks, 1)]
    rows += [row(task, 0.25, setting="task_free") for task in tasks]
    rows += [row(task, 0.01, system="random") for task in tasks]
    lines = results_table.table(figures.Results(tuple(rows), ())).splitlines()
    assert lines[2] == "| quickstart | .100 | .200 | .300 | .400 | .500 | .600 | .350 | .250 |"
    assert lines[3] == "| colour histogram | – | – | – | – | – | – | – |  |"
    assert lines[4] == "| random embedding | .010 | .010 | .010 | .010 | .010 | .010 | .010 |  |"


def test_the_run_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (DOCS / "training.md").read_text("utf-8")
    (tmp_path / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    assert load(str(tmp_path / "mine.py")).train.steps == 600


def test_the_picture_has_the_best_list_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "evaluation" / "report"))
    from report_example import SENTENCE, fake_data, fake_results

    picture = module("picture")
    data, sets = fake_data(), ["procedural_ctcc", "procedural_li"]
    report = write.write_report(tmp_path / "run", fake_results(), data).read_text("utf-8")
    templates, sentences = picture.best_lists(report, sets)
    assert sentences.instruction == SENTENCE
    assert templates.instruction.size[0] > 0
    section = next(section for section in data.sections if section.test_set == "procedural_li")
    lists = [*section.examples, *section.best, *section.worst]
    best = max(lists, key=lambda one: 0 if math.isnan(one.ap) else one.ap)
    assert [right for _, right in sentences.ranked] == [hit.relation == "positive" for hit in best.ranked]
    drawn = picture.draw([templates, sentences], images=4)
    assert drawn.size == (picture.WIDE * 5 + picture.TEXT + picture.GAP * 8, picture.TOP + 2 * (picture.HIGH + 20))
