"""The page: complete, self-contained, and every table and chart a selection of rows."""

import json
import re

import numpy as np
import pytest
from page_reader import Page
from report_example import fake_data, fake_results, two_sets_per_task

from data_pipelines.tasks import TASKS
from irm_jax.evaluation.figures import Figure, Results
from irm_jax.evaluation.report import page as report_page
from irm_jax.evaluation.report import write
from irm_jax.evaluation.report.results import ReportData
from irm_jax.evaluation.report.selections import Selections, flatten


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
    shown = [attrs["href"] for tag, attrs in page.tags if tag == "use"]
    assert {href[1:] for href in shown} == {attrs["id"] for tag, attrs in page.tags if tag == "image"}
    assert len(set(shown)) < len(shown)  # a picture that is shown twice is embedded once
    assert all(attrs["aria-label"].strip() for tag, attrs in page.tags if attrs.get("role") in ("img", "region"))


def test_nothing_comes_from_outside(written: tuple[Page, str, dict]) -> None:
    page, text, _ = written
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text), re.I)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    sources = [attrs[key] for tag, attrs in page.tags for key in ("src", "srcset", "xlink:href") if key in attrs]
    sources += [attrs["href"] for tag, attrs in page.tags if tag == "image"]
    assert {attrs["href"][0] for tag, attrs in page.tags if "href" in attrs and tag != "image"} == {"#"}
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "url(" not in text
    assert "@import" not in text


def numbers(content: dict) -> dict:
    """The numbers of results.json by their path, without the points of the ROC curves."""
    return {
        path: value
        for group in ("figures", "open_set")
        for path, value in flatten(content[group], group)
        if (isinstance(value, (int, float)) or value is None) and not isinstance(value, bool) and ".roc." not in path
    }


def test_every_figure_is_shown(written: tuple[Page, str, dict]) -> None:
    page, _, results = written
    leaves = numbers(results)
    assert len(leaves) > 500
    scores = {path: value for path, value in leaves.items() if ".threshold." in path}
    assert len(scores) == 2
    for path, value in scores.items():
        assert page.figures[path] == {f"{value:.3f}"}  # a score, no fraction: not in percent
        del leaves[path]
    for path, value in leaves.items():
        expected = "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"
        assert page.figures[path] == {expected}, path


def test_metrics_stand_in_the_tables(written: tuple[Page, str, dict]) -> None:
    """The figures above the collapsible list of all of them, read back from the tables themselves."""
    _, text, results = written
    tables = Page(text[: text.index("Every figure of results.json")]).figures
    for number, row in enumerate(results["figures"]):
        if row["system"] == "model":
            for key in ("mAP", "rank1", "rank5", "rank10", "mINP", "queries", "gallery_size"):
                assert f"figures.{number}.{key}" in tables
            if "cut" not in row:
                for key in ("mAP_tau", "mAP_tau_common", "tau_positives_kept", "mAP_tau_dropped"):
                    assert all(f"figures.{number}.{key}.{tau}" in tables for tau in row.get(key, ()))
        else:
            assert f"figures.{number}.mAP" in tables
    for key in ("present", "absent", "auc", "tpr.0.01", "tpr.0.001", "identified.0.01", "identified.0.001"):
        assert f"open_set.0.{key}" in tables

    def shown(key: str, task: str, system: str = "model") -> set[str]:
        """What the tables show of a test set under its rule, task-specific."""
        rows = [
            number for number, row in enumerate(results["figures"])
            if (row["task"], row["system"], row["setting"], row.get("cut")) == (task, system, "task_specific", None)
        ]  # fmt: skip
        return tables[f"figures.{rows[0]}.{key}"]

    assert shown("std.mAP", "vi") == {"1.2"}
    assert shown("mAP", "ctcc") == {"76.4"}
    assert shown("dropped.no_positive", "li") == {"2"}
    assert shown("follow_rate", "li", "swapped_instruction") == {"84.4"}
    assert shown("mAP_own", "li", "swapped_instruction") == {"71.0"}
    assert shown("queries", "li", "swapped_instruction") == {"117"}
    assert f"{0.7104 / 0.0881:.1f}×" in text


def test_rankings_checks_leaks_and_run(written: tuple[Page, str, dict]) -> None:
    page, text, results = written
    assert len(page.having("ranklist")) == 6 * 4
    shown = [len(page.having(relation)) for relation in ("positive", "negative", "junk")]
    stored = [json.dumps(results["rank_lists"]).count(f'"relation": "{r}"') for r in ("positive", "negative", "junk")]
    assert shown == [count + 6 for count in stored]  # each task also has a key of the three frames
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
        "top 500",
        "cut at 500",
        "attributes",
        "positive: same person in the outfit",
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
        "meaning": "the ceiling lies below 100%",
    }
    rows = [(row["people"], row["harmful"], row["deliberate"]) for row in results["leaks"]]
    assert rows == [(2, True, False), (16, True, True), (1, False, False)]


def test_the_answer_comes_first_and_tables_are_folded(written: tuple[Page, str, dict]) -> None:
    page, text, _ = written
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == ["answer", *(f"section-{k}" for k in range(1, 7)), "curves", "failed", "tables", "run", "use"]
    answer = text[text.index('id="answer"') : text.index('id="section-1"')]
    assert "Mean mAP over 6 test sets: 56.8%; above a random order in 6 of 6" in answer
    cards = re.findall(r'<div class="card">(.*?)</dl>', answer, re.DOTALL)
    found = [dict(re.findall(r"<dt>(random|histogram)</dt><dd>([\d.]+)%", card)) for card in cards]
    assert found == [{"random": "1.6", "histogram": "4.2"}] * 6
    assert re.findall(r"best known <small>([^<]*)</small></dt><dd>([\d.]+)%", answer) == [("A paper, 2026", "91.2")]
    unfolded = re.sub(r"(?s)<style>.*?</style>", "", text)
    while "<details>" in unfolded:  # the innermost ones first
        unfolded = re.sub(r"<details>(?:(?!<details>).)*?</details>", "", unfolded, flags=re.DOTALL)
    assert unfolded.count("<table") == 1  # the terms of the data


def test_one_rank_list_of_each_set_is_chosen(written: tuple[Page, str, dict]) -> None:
    page, text, _ = written
    radios = [attrs for tag, attrs in page.tags if tag == "input"]
    assert len(radios) == 6 * 4
    assert sum("checked" in attrs for attrs in radios) == len({attrs["name"] for attrs in radios}) == 6
    assert {attrs["id"] for attrs in radios} == {attrs["for"] for tag, attrs in page.tags if tag == "label"}
    rules = re.findall(r"input:nth-of-type\((\d)\):checked\)>\.chosen>:nth-child\(\1\)", text)
    assert rules == ["1", "2", "3", "4"]


def test_what_failed_is_explained_in_its_own_section(written: tuple[Page, str, dict]) -> None:
    _, text, _ = written
    failures = re.sub(r"<[^>]*>", "", text[text.index('id="failed"') : text.index('id="tables"')])
    assert "98.1%, but at least 99.0% is needed: labels alone must solve it." in failures
    assert "the ceiling lies below 100%" in failures
    assert "figures of that test set are too high" in failures
    assert "histogram on cc" not in failures


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("published")
    return write.write_report(path, two_sets_per_task(), ReportData(fake_data(0).run)).read_text()


def test_every_test_set_has_a_card_with_its_own_task_free_figure(published: str) -> None:
    """Two test sets of one task stand side by side; further rules of a set are lines of its card."""
    found = {}
    for card in re.findall(r'<div class="card">(.*?)</dl>', published, re.DOTALL):
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", card))
        name, value = re.search(r"(\S+) ([\d.]+)% mAP", words).groups()
        free = re.search(r"task-free ([\d.]+)%", words)
        rules = dict(re.findall(r"(prcc_cross_single_shot|llcm_v2n_released) ([\d.]+)%", words))
        found[name] = float(value), free and float(free[1]), rules
    rows = two_sets_per_task().figures

    def mean_ap(**fields: object) -> float:
        (row,) = [r for r in rows if all(getattr(r, key) == value for key, value in fields.items()) and r.plain]
        return pytest.approx(100 * row.mAP)

    assert found == {
        "market1501": (mean_ap(test_set="market1501", setting="task_specific"),
                       mean_ap(test_set="market1501", setting="task_free"), {}),
        "cuhk01": (mean_ap(test_set="cuhk01", setting="task_specific"),
                   mean_ap(test_set="cuhk01", setting="task_free"), {}),
        "prcc_cross": (mean_ap(protocol="prcc_cross_multi_shot", setting="task_specific"),
                       mean_ap(protocol="prcc_cross_multi_shot", setting="task_free"),
                       {"prcc_cross_single_shot": "9.0"}),
        "llcm": (mean_ap(protocol="llcm_n2v", setting="task_specific"),
                 mean_ap(protocol="llcm_n2v", setting="task_free"), {"llcm_v2n_released": "11.0"}),
        "sysu_mm01": (mean_ap(protocol="sysu_all"), None, {}),
    }  # fmt: skip


def test_the_union_is_described_by_its_own_row(published: str) -> None:
    assert "the rule; against the union of prcc_cross" in published
    assert published.count("the rule; against the union of prcc_cross") == 1


def test_labels_of_the_overview_are_whole_and_distinct(published: str) -> None:
    labels = re.findall(r'<text class="row" x="(\d+)"[^>]*>([^<]*)</text>', published)
    assert [name for _, name in labels] == [
        "market1501", "cuhk01", "cc", "llcm", "sysu_mm01", "market1501", "cuhk01", "cc", "vi",
    ]  # fmt: skip
    for x, name in labels:
        assert int(x) >= 6.5 * len(name)


def test_lines_of_two_sets_of_a_task_differ() -> None:
    tables = {"mAP_tau": {"0.5": 0.5, "0.9": 0.4}}
    rows = [Figure(test_set=name, task="li", protocol="market", **tables) for name in ("one", "two")]
    (chart,) = report_page._tau_charts(Selections(Results(tuple(rows))))
    lines = re.findall(r'<path class="line (s\d)" stroke-dasharray="([^"]*)" d="M\d', chart)
    assert len({css for css, _ in lines}) == 1
    assert len({dash for _, dash in lines}) == 2
