"""Per-query files and the paired bootstrap; files and results of version 1."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os

import numpy as np
import pytest
from etils import epath

from irm_jax.evaluation import compare
from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.figures import Figure, label, read_results
from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.ranking.scores import EmbeddingScores
from irm_jax.evaluation.records import Records

IMAGES = np.arange(300, dtype=np.uint64) + (1 << 63)
STREET = Figure(test_set="street", task="trad", protocol="market")
NAME = "street/market"


def save(workdir, result, ids, gallery=IMAGES, figure=STREET):
    return compare.save_per_query(workdir, figure, result, ids, gallery)


def a_ranking(seed: int, noise: float, queries: int = 200) -> Ranking:
    random = np.random.default_rng(seed)
    centre = np.random.default_rng(0).standard_normal((20, 8))
    identity = np.arange(300) % 20
    embedding = centre[identity] + noise * random.standard_normal((300, 8))
    records = Records.of(identity=identity, camera=np.arange(300) % 7)
    case = prepare(MARKET, records.take(np.arange(queries)), records)
    return case.rank(EmbeddingScores(embedding[:queries], embedding), Options(query_block=64))


def test_saved_results_read_back(tmp_path):
    result = a_ranking(1, 0.5)
    path = save(tmp_path, result, np.arange(200))
    assert path == tmp_path / "per_query" / "street_market.npz"
    assert [p.name for p in path.parent.iterdir()] == ["street_market.npz"]
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["query_id"], np.arange(200))
        for name in compare.ARRAYS:
            np.testing.assert_array_equal(saved[name], getattr(result, name))
        assert saved["gallery"] == 300
        assert Figure.from_json(json.loads(str(saved["figure"]))) == STREET


@pytest.mark.parametrize("ids", [np.zeros(200, int), np.arange(199)])
def test_query_ids_must_name_each_query_once(tmp_path, ids):
    with pytest.raises(ValueError, match="each of the 200 queries once"):
        save(tmp_path, a_ranking(1, 0.5), ids)


def test_a_run_equals_itself(tmp_path):
    save(tmp_path, a_ranking(1, 0.5), np.arange(200))
    for row in compare.compare_runs(tmp_path, tmp_path, samples=50):
        assert (row.difference, row.low, row.high, row.clear, row.unpaired) == (0, 0, 0, False, 0)


def test_a_better_run_is_found_better_in_any_query_order(tmp_path):
    worse, better = a_ranking(1, 1.0), a_ranking(2, 0.4)
    save(tmp_path / "a", worse, np.arange(200))
    order = np.random.default_rng(0).permutation(200)
    shuffled = dataclasses.replace(
        better,
        **{name: getattr(better, name)[order] for name in ("ap", "first_positive_rank", "num_positives", "drop_cause")},
    )
    save(tmp_path / "b", shuffled, order)
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=500)
    assert [row.metric for row in rows] == ["mAP", "rank1"]
    first = rows[0]
    assert (first.figure, first.queries) == (NAME, 200)
    assert first.a == pytest.approx(summarize(worse)["mAP"])
    assert first.b == pytest.approx(summarize(better)["mAP"])
    assert first.difference == pytest.approx(first.b - first.a)
    assert 0 < first.low < first.difference < first.high
    assert first.clear
    assert compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=500) == rows
    table = compare.comparison_table(rows).to_markdown()
    assert f"{first.b:.4f}" in table
    assert table.count(" *") == sum(row.clear for row in rows) + 1


def test_files_of_earlier_versions_compare(tmp_path):
    """They are named by what was ranked, and the oldest hold no rank1, only the rank of the first positive."""
    for run, noise in (("a", 1.0), ("b", 0.4)):
        path = save(tmp_path / run, a_ranking(1, noise), np.arange(200))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=50)
    with np.load(path) as saved:
        old = {name: saved[name] for name in saved if name not in ("rank1", "figure")}
    path.unlink()
    np.savez(path.with_name("own_trad.npz"), **old)
    config = {"evaluation": {"sets": {"street": {"protocols": ["own_trad"]}}}}
    (tmp_path / "b" / "results.json").write_text(json.dumps({"run": {"config": config}}))
    assert compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=50) == rows


def test_only_rankings_of_the_same_gallery_are_compared(tmp_path, caplog):
    """The order of the images does not matter; one image more does, though no query has another positive. The other
    figures are compared all the same. Files of earlier versions do not say what was ranked."""
    better, other = a_ranking(1, 0.4), dataclasses.replace(STREET, scoring=("flip",))
    for run, images in (("a", IMAGES), ("b", IMAGES[::-1]), ("more", np.append(IMAGES, 7)), ("other", IMAGES + 1)):
        path = save(tmp_path / run, better, np.arange(200), images)
        save(tmp_path / run, better, np.arange(200), figure=other)
    assert [row.figure for row in compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=10)] == [
        NAME, NAME, f"{NAME} (flip)", f"{NAME} (flip)",
    ]  # fmt: skip
    assert not caplog.text
    for run, size in (("more", 301), ("other", 300)):
        rows = compare.compare_runs(tmp_path / "a", tmp_path / run, samples=10)
        assert [row.figure for row in rows] == [f"{NAME} (flip)"] * 2
        assert f"not compared: {NAME}: " in caplog.text
        assert f"{run}/per_query/street_market.npz {size}, not the same" in caplog.text
    with np.load(path) as saved:
        np.savez(path, **{name: saved[name] for name in saved if not name.startswith("gallery")})
    assert len(compare.compare_runs(tmp_path / "a", tmp_path / "other", samples=10)) == 4
    assert f"not checked for {NAME}" in caplog.text


def test_dropped_and_missing_queries_are_not_paired(tmp_path):
    result = a_ranking(1, 0.5)
    dropped = dataclasses.replace(result, ap=np.where(np.arange(200) < 10, np.nan, result.ap))
    save(tmp_path / "a", dropped, np.arange(200))
    save(tmp_path / "b", a_ranking(1, 0.5, queries=150), np.arange(150))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=20)
    assert (rows[0].queries, rows[0].unpaired) == (140, 60)
    assert "| 140 | 60 |" in compare.comparison_table(rows).to_markdown()


def test_variants_and_figures_of_one_run_only(tmp_path, caplog):
    result = a_ranking(1, 0.5)
    free = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}
    variants = [dataclasses.replace(STREET, **changes) for changes in ({"cut": 500}, free, {"test_set": "street_2"})]
    for run in "ab":
        for figure in variants:
            save(tmp_path / run, result, np.arange(200), figure=figure)
    save(tmp_path / "a", result, np.arange(200))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=10)
    assert sorted({row.figure for row in rows}) == sorted(map(label, variants))
    assert f"only one of the runs has {NAME}: not compared" in caplog.text


def test_an_evaluation_of_version_1_is_read_and_compared(earlier_run, tmp_path):
    """Every figure of a run of the code before figures were rows, with flips, re-ranking, distractors and controls."""
    found = {label(figure): figure for figure in read_results(earlier_run).figures}
    old = json.loads((earlier_run / "results.json").read_text())
    groups = [old["protocols"], old["swapped_instructions"], *old["baselines"].values()]
    assert len(found) == sum(map(len, groups))
    assert sum(figure.mAP for figure in found.values()) == pytest.approx(
        sum(e["mAP"] for t in groups for e in t.values())
    )
    assert found["procedural_ctcc/template_outfit"].mAP == 0.5062074922289975
    assert found["procedural_trad/same_outfit (with distractors, flip + rerank)"].mAP == 0.0912409585981716
    assert found["procedural_t2i/described_outfit (swapped instruction)"].mAP_own == 0.1312073783044503
    rows = compare.compare_runs(earlier_run, earlier_run, samples=10)
    assert {row.figure for row in rows} == {label(figure) for figure in found.values() if figure.system == "model"}
    for row in rows:
        assert row.a == pytest.approx(getattr(found[row.figure], row.metric))
    # Beside a run of this version: what it ranked is found under its new name.
    with np.load(earlier_run / "per_query" / "task_free" / "procedural_ctcc@own.npz") as earlier:
        kept = {name: earlier[name] for name in earlier}
    figure = found["procedural_ctcc/template_outfit (task-free, gallery under its own instructions)"]
    path = save(tmp_path, a_ranking(1, 0.5, queries=len(kept["query_id"])), kept["query_id"], figure=figure)
    with np.load(path) as saved:
        np.savez(path, **{**kept, "figure": saved["figure"]})
    rows = compare.compare_runs(earlier_run, tmp_path, samples=10)
    assert [(row.figure, row.difference) for row in rows] == [(label(figure), 0)] * 2


def test_runs_that_cannot_be_compared(tmp_path):
    result = a_ranking(1, 0.5)
    save(tmp_path / "a", result, np.arange(200))
    with pytest.raises(ValueError, match=r"no per-query results in .*empty"):
        compare.compare_runs(tmp_path / "a", tmp_path / "empty")
    save(tmp_path / "other", result, np.arange(200), figure=dataclasses.replace(STREET, protocol="ltcc_cc"))
    with pytest.raises(compare.CompareError, match="share no figure"):
        compare.compare_runs(tmp_path / "a", tmp_path / "other")
    more = dataclasses.replace(result, num_positives=result.num_positives + 1)
    save(tmp_path / "more", more, np.arange(200))
    with pytest.raises(ValueError, match="ranked different galleries"):
        compare.compare_runs(tmp_path / "a", tmp_path / "more")
    save(tmp_path / "others", result, np.arange(200) + 1000)
    with pytest.raises(ValueError, match="no query was ranked in both"):
        compare.compare_runs(tmp_path / "a", tmp_path / "others")
    save(tmp_path / "names", result, [f"q{i}" for i in range(200)])
    with pytest.raises(ValueError, match="query_id is int64 in"):
        compare.compare_runs(tmp_path / "a", tmp_path / "names")


def test_several_runs_are_compared_with_the_first_in_one_table(tmp_path, capsys):
    for run, noise in (("a", 1.0), ("b", 0.7), ("c_1", 0.4)):
        save(tmp_path / run, a_ranking(1, noise), np.arange(200))
    rows = compare.compare_with_first([tmp_path / run for run in ("a", "b", "c_1")], samples=50)
    assert [(row.run_b, row.metric) for row in rows] == [
        (str(tmp_path / run), metric) for metric in ("mAP", "rank1") for run in ("b", "c_1")
    ]
    table = compare.comparison_table(rows)
    table.show()
    assert f"{rows[2].difference:+.4f}" in capsys.readouterr().out
    compare.write_comparison(epath.Path(tmp_path / "out"), rows)
    found = {path.suffix: path.read_text() for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
    assert set(found) == {".json", ".csv", ".md", ".tex"}
    assert [row["low"] for row in json.loads(found[".json"])] == [row.low for row in rows]
    lines = list(csv.DictReader(io.StringIO(found[".csv"])))
    assert [float(line["high"]) for line in lines] == [row.high for row in rows]
    assert found[".md"].count("\n| ") == found[".tex"].count(r"\\") + 1 == 6
    assert r"c\_1" in found[".tex"]


def damaged_files(whole):
    """What a file of per-query results may hold in place of them."""
    with np.load(io.BytesIO(whole)) as saved:
        arrays = {name: saved[name] for name in saved}
    for change in ({"ap": None}, {"ap": np.zeros(3)}, {"rank1": np.zeros((2, 2))}, {"num_positives": np.full(200, "x")},
                   {"gallery_content": np.zeros(3)}, {"figure": np.array("{")}, {"figure": np.array("[" * 99999)},
                   {"figure": np.array("[]")}, {"query_id": np.zeros((200, 2))}):  # fmt: skip
        file = io.BytesIO()
        np.savez(file, **{name: array for name, array in {**arrays, **change}.items() if array is not None})
        yield file.getvalue()
    yield from (b"", whole[:200], whole[:-40], b"PK\x03\x04", b"\x80\x04.")
    place = whole.index(b"num_positives.npy") + 60
    yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def test_damaged_files_are_named(tmp_path):
    path = save(tmp_path / "a", a_ranking(1, 0.5), np.arange(200))
    whole = path.read_bytes()
    for content in damaged_files(whole):
        path.write_bytes(content)
        with pytest.raises(compare.CompareError, match=r"street_market\.npz is damaged .*evaluate that run again"):
            compare.compare_runs(tmp_path / "a", tmp_path / "a", samples=3)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(compare.CompareError, match="no regular file"):
        compare.compare_runs(tmp_path / "a", tmp_path / "a", samples=3)


def test_bootstrap_interval_matches_the_normal_one():
    values = np.random.default_rng(1).standard_normal((2000, 2)) * [1, 3] + [0.5, 0]
    low, high = compare.bootstrap_interval(values, samples=4000, seed=0)
    error = 1.96 * values.std(axis=0) / np.sqrt(2000)
    np.testing.assert_allclose(low, values.mean(axis=0) - error, atol=error.max() * 0.1)
    np.testing.assert_allclose(high, values.mean(axis=0) + error, atol=error.max() * 0.1)
