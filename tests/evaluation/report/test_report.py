"""The report: complete, self-contained, atomic; and `results.json` in the form that the README promises."""

import copy
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from report_example import fake_data, fake_results, metrics, two_sets_a_task

from data_pipelines.tasks import TASKS
from irm_jax.evaluation.report import page as report_page
from irm_jax.evaluation.report import write
from irm_jax.evaluation.report.results import checked_results

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "circle", "polygon"}


class Page(html.parser.HTMLParser):
    """Checks the nesting of the tags and gathers what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.figures: dict[str, set[str]] = {}
        self.text: list[str] = []
        self._figure = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._figure = found.get("data-figure", "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()
        self._figure = ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._figure:
            self.figures.setdefault(self._figure, set()).add(data)

    def having(self, css: str) -> list[dict]:
        return [attrs for _, attrs in self.tags if css in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, dict]:
    workdir = tmp_path_factory.mktemp("run") / "new"
    path = write.write_report(workdir, fake_results(), fake_data())
    assert path == workdir / "report.html"
    text = path.read_text()
    return Page(text), text, json.loads((workdir / "results.json").read_text())


def test_page_is_well_formed(written: tuple[Page, str, dict]) -> None:
    page, text, _ = written
    assert text.startswith("<!doctype html>")
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert all(attrs["alt"].strip() for attrs in images)
    assert all(attrs["aria-label"].strip() for tag, attrs in page.tags if attrs.get("role") in ("img", "region"))


def test_nothing_comes_from_outside(written: tuple[Page, str, dict]) -> None:
    page, text, _ = written
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text), re.I)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "srcset", "xlink:href") if key in attrs]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "url(" not in text
    assert "@import" not in text


def test_every_figure_is_shown(written: tuple[Page, str, dict]) -> None:
    page, _, results = written
    leaves = {
        path: value
        for group in ("protocols", "baselines", "swapped_instructions", "open_set")
        for path, value in report_page.flatten(results[group], group)
        if (isinstance(value, (int, float)) or value is None) and ".roc." not in path
    }
    assert len(leaves) > 500
    scores = {path: value for path, value in leaves.items() if ".threshold." in path}
    assert len(scores) == 2
    for path, value in scores.items():
        assert page.figures[path] == {f"{value:.3f}"}  # no share: not in percent
        del leaves[path]
    for path, value in leaves.items():
        expected = "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"
        assert page.figures[path] == {expected}, path


def test_metrics_stand_in_the_tables(written: tuple[Page, str, dict]) -> None:
    """The figures above the collapsible list of all paths, read back from the tables themselves."""
    _, text, results = written
    tables = Page(text[: text.index("Every evaluation figure")]).figures
    for name, entry in results["protocols"].items():
        for key in ("mAP", "rank1", "rank5", "rank10", "mINP", "queries", "gallery"):
            assert f"protocols.{name}.{key}" in tables
        for key in ("mAP_tau", "mAP_tau_common", "tau_positives_kept", "mAP_tau_dropped"):
            assert all(f"protocols.{name}.{key}.{tau}" in tables for tau in entry[key] or {})
    for baseline, entries in results["baselines"].items():
        assert all(f"baselines.{baseline}.{name}.mAP" in tables for name in entries)
    for key in ("present", "absent", "auc", "tpr.0.01", "tpr.0.001", "identified.0.01", "identified.0.001"):
        assert f"open_set.procedural_trad.{key}" in tables
    assert tables["protocols.procedural_vi.std.mAP"] == {"1.2"}
    assert tables["protocols.procedural_ctcc.mAP"] == {"76.4"}
    assert tables["protocols.procedural_li.dropped.no_positive"] == {"2"}
    assert tables["swapped_instructions.procedural_li.follow_rate"] == {"84.4"}
    assert tables["swapped_instructions.procedural_li.mAP_own"] == {"71.0"}
    assert tables["swapped_instructions.procedural_li.queries"] == {"117"}
    assert f"{0.7104 / 0.0881:.1f}×" in text


def test_rankings_checks_leaks_and_run(written: tuple[Page, str, dict]) -> None:
    page, text, results = written
    assert len(page.having("ranklist")) == 6 * 4
    shown = [len(page.having(relation)) for relation in ("positive", "negative", "junk")]
    stored = [json.dumps(results["rank_lists"]).count(f'"relation": "{r}"') for r in ("positive", "negative", "junk")]
    assert shown == [count + 6 for count in stored]  # each task also has a key of the three frames
    assert len(page.having("glyph")) == 6 * 4 * 10
    words = " ".join(page.text)
    for expected in (
        "✕ fail",
        "≥ 99.0%",
        "98.1%",
        "1.08×",
        "16",
        "✕ harmful",
        "two, unlinked",
        "✕ 2 harmful leaks but the 16 put there on purpose",
        "✓ found, put there on purpose",
        "0f3c2d1a9b",
        " + changes",
        "0.10.2",
        '"preset": "tiny"',
        "Drawn by this project",
        "ignore clothes",
        "cut at 500",
        "attributes",
    ):
        assert expected in words, expected
    assert "&lt;b&gt;no&lt;/b&gt; bag &amp; walks" in text
    assert results["run"]["seed"] == 0
    assert results["benchmark_checks"][2] == {
        "name": "oracle",
        "value": 0.981,
        "limit": 0.99,
        "passed": False,
        "bound": "at least",
        "unit": "fraction",
        "explanation": "labels alone must solve it",
    }
    rows = [(row["people"], row["harmful"], row["deliberate"]) for row in results["leaks"]]
    assert rows == [(2, True, False), (16, True, True), (1, False, False)]


def test_charts(written: tuple[Page, str, dict]) -> None:
    page, _, results = written
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "aria-label" in attrs]
    for start in (
        "mAP, task-specific",
        "mAP, task-free",
        "mAP over τ, task-specific",
        "ROC of the best score",
        "loss",
        "identity loss",
        "identity accuracy",
        "mean beta",
        "images per second",
    ):
        assert any(label.startswith(start) for label in labels), start
    curves = results["training_curves"]
    assert next(iter(curves)) == "loss"
    assert "note" not in curves
    assert set(curves["triplet_loss"]) == set(TASKS)
    assert len(curves["loss"]["all"]["value"]) == write.CURVE_POINTS
    assert curves["triplet_loss"]["cc"]["step"][0] >= 100  # NaN records are left out
    assert curves["loss"]["all"]["value"][0] == pytest.approx(np.mean([r["loss"] for r in fake_data().history[:3]]))


def test_undefined_figures_are_null(written: tuple[Page, str, dict]) -> None:
    _, _, results = written
    assert results["protocols"]["procedural_cc"]["mAP_tau"]["0.9"] is None
    assert results["protocols"]["procedural_t2i"]["mAP_tau"] is None
    plain = checked_results({**fake_results(), "extra": {"a": np.float32("inf"), "b": np.arange(2)}})
    assert plain["extra"] == {"a": None, "b": [0, 1]}


def edit(path: str, value: object) -> dict:
    results = copy.deepcopy(fake_results())
    *parents, last = path.split("|")
    place = results
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return results


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("protocols", {}, "at least one protocol"),
        ("protocols|procedural_cc|mINP", KeyError, "protocols.procedural_cc lacks mINP"),
        ("protocols|procedural_cc|mAP", 73.2, r"protocols.procedural_cc.mAP is 73.2.*divide percentages"),
        ("protocols|procedural_cc|rank1", "0.5", "protocols.procedural_cc.rank1 is '0.5'"),
        ("protocols|procedural_cc|mAP_tau", {"half": 0.5}, "key 'half'"),
        ("protocols|procedural_cc|mAP_tau", {"0.5": -0.1}, r"protocols.procedural_cc.mAP_tau.0.5 is -0.1"),
        ("protocols|procedural_cc|setting", "taskfree", "setting 'taskfree'"),
        ("protocols|procedural_cc|task", "ccc", "task 'ccc'"),
        ("protocols|procedural_cc|queries", 3.5, "queries is 3.5"),
        ("protocols|procedural_cc|dropped", {"tau": -1}, "dropped.tau is -1"),
        ("baselines|random|market", {"mAP": 0.1}, "baselines.random names the protocol 'market'"),
        ("swapped_instructions|procedural_li", {"follow_rate": 0.1}, "swapped_instructions.procedural_li lacks mAP"),
        ("swapped_instructions|procedural_li", {"mAP": 0.1, "follow_rate": 84.0}, "follow_rate is 84.0"),
        ("swapped_instructions|procedural_li|mAP_own", 71.0, "mAP_own is 71.0"),
        ("protocols|procedural_vi|std|mAP", 1.2, r"protocols.procedural_vi.std.mAP is 1.2"),
        ("open_set|procedural_trad|auc", 99.0, r"open_set.procedural_trad.auc is 99.0"),
        ("open_set|procedural_trad|tpr|0.01", -1, r"open_set.procedural_trad.tpr.0.01 is -1"),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write.write_report(tmp_path, edit(path, value), fake_data(0))
    assert list(tmp_path.iterdir()) == []


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"results.run.path has type PosixPath"):
        checked_results({**fake_results(), "run": {"path": Path("x")}})
    with pytest.raises(ValueError, match="relation 'good'"):
        write.RankedImage(b"", 0.5, "good")
    with pytest.raises(ValueError, match="unknown task 'reid'"):
        write.TaskSection("reid", "market1501")
    with pytest.raises(ValueError, match="bound 'below'"):
        write.BenchmarkCheck("x", 1, 2, True, "below")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old page")
    (tmp_path / "results.json").write_text("old figures")

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(epath.Path, "write_text", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): free space.*results.json"):
        write.write_report(tmp_path, fake_results(), write.ReportData(fake_data(0).run))
    assert (tmp_path / "report.html").read_text() == "old page"
    assert (tmp_path / "results.json").read_text() == "old figures"


HEADS = ["cuhk01", "cuhk03_np+labeled", "market1501", "prcc_cross+multi_shot", "prcc_cross+single_shot", "llcm_n2v"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("published")
    return write.write_report(path, two_sets_a_task(), write.ReportData(fake_data(0).run)).read_text()


def test_every_head_has_a_card_with_its_own_task_free_figure(published: str) -> None:
    found = {}
    for card in re.findall(r'<div class="card">(.*?)</dl>', published, re.DOTALL):
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", card))
        name, value = re.search(r"(\S+) ([\d.]+)% mAP", words).groups()
        free = re.search(r"task-free ([\d.]+)%", words)
        found[name] = float(value), free and float(free[1])
    assert sorted(found) == sorted(HEADS)
    protocols = two_sets_a_task()["protocols"]
    for name, figures in found.items():
        expected = [protocols[n]["mAP"] if n in protocols else None for n in (name, f"task_free/{name}")]
        assert figures == (pytest.approx(100 * expected[0]), expected[1] and pytest.approx(100 * expected[1])), name
    assert found["prcc_cross+single_shot"][1] is None


def test_variants_stand_under_the_shortest_protocol_of_their_name() -> None:
    protocols = two_sets_a_task()["protocols"]
    rows = report_page._protocol_rows(protocols, "task_specific")
    assert [row["name"] for row in rows if not row["variant"]] == [
        "market1501", "cuhk01", "cuhk03_np+labeled", "prcc_cross+multi_shot", "prcc_cross+single_shot", "llcm_n2v",
    ]  # fmt: skip
    heads = ""
    for row in rows:  # each right below its head; one whose head was not ranked is a variant all the same
        heads = heads if row["variant"] else row["name"]
        assert row["name"].startswith(heads) or row["name"] == "llcm_v2n@released"
    free = report_page._protocol_rows(protocols, "task_free")
    assert [row["name"] for row in free if row["variant"]] == [
        f"task_free/{name}" for name in (
            "market1501@own", "market1501@test_set", "cuhk01@own", "cuhk03_np+labeled@own",
            "prcc_cross+multi_shot@own", "prcc_cross+multi_shot@test_set",
        )
    ]  # fmt: skip
    # Were CUHK03 ranked under its plain name as well, the labeled boxes would be its variant.
    both = {"cuhk03_np": protocols["market1501"], **protocols}
    rows = {row["name"]: row for row in report_page._protocol_rows(both, "task_specific")}
    assert rows["cuhk03_np+labeled"]["variant"]
    assert rows["cuhk03_np+labeled+rerank"]["note"] == "boxes drawn by hand; k-reciprocal re-ranking"


def test_the_union_is_not_described_as_drawn(published: str) -> None:
    cell = re.search(r"<code>task_free/prcc_cross\+multi_shot</code></span>\s*<small>(.*?)</small>", published)
    assert cell[1] == "the rule; against the union of prcc_cross+multi_shot"
    assert "one random image" not in published


def test_labels_of_the_overview_are_whole_and_distinct(published: str) -> None:
    labels = re.findall(r'<text class="row" x="(\d+)"[^>]*>([^<]*)</text>', published)
    specific = [name for _, name in labels][: len(HEADS)]
    assert sorted(specific) == sorted([*HEADS[:-1], "vi"])
    assert [name for _, name in labels][len(HEADS) :] == ["market1501", "cuhk01", "cuhk03_np+labeled", "cc", "vi"]
    for x, name in labels:
        assert int(x) >= 6.5 * len(name)


def test_a_bare_evaluation_is_enough(tmp_path: Path) -> None:
    """A real set under one protocol, nothing else computed: the page says what is missing and breaks nowhere."""
    entry = {"task": "trad", "setting": "task_specific", **metrics(0.41), "mAP_tau": None, "queries": 3368}
    results = {"protocols": {"market1501": {**entry, "dropped": {}}}}
    run = {"config": {"a": 1}, "seed": 3, "versions": {}, "git": None, "command": "python"}
    page = Page(write.write_report(tmp_path, results, write.ReportData(run)).read_text())
    words = " ".join(page.text)
    for expected in (
        "41.0",
        "3,368",
        "No leak check ran",
        "No training curves",
        "No baselines",
        "not defined",
        '"a": 1',
    ):
        assert expected in words
    assert page.open == []
    assert "Compiled ahead of time" not in words
    with pytest.raises(ValueError, match="run lacks config, versions, git, command: pass run_record"):
        write.ReportData({"seed": 3})


def test_the_table_of_compile_mode_joins_the_report_of_its_folder(tmp_path: Path) -> None:
    entry = {
        "topology": "v5e:16x16", "devices": 256, "peak_bytes": 3 << 30, "limit_bytes": 15 << 30, "flops": 10**15,
        "collective_bytes": {"all-reduce": 5 << 20}, "roofline_s": {"compute": 0.02, "memory": 0.03, "network": None},
        "bound": "memory", "compile_s": 16.0,
    }  # fmt: skip
    (tmp_path / "compile.json").write_text(json.dumps({"train": entry}))
    path = write.write_report(tmp_path, fake_results(), fake_data())
    page = Page(path.read_text())
    assert page.open == []
    for expected in ("Compiled ahead of time", "v5e:16x16", "3 GiB", "all-reduce 5 MiB", "30 ms", "–"):
        assert expected in " ".join(page.text)
    assert json.loads((tmp_path / "results.json").read_text())["compile"] == {"train": entry}
