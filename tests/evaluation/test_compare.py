"""Per-query files and the paired bootstrap."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from irm_jax.evaluation import compare, protocols
from irm_jax.evaluation.ranking import rank

MARKET = protocols.PROTOCOLS["market1501"]
IMAGES = np.arange(300, dtype=np.uint64) + (1 << 63)


def save(workdir, result, ids, gallery=IMAGES):
    return compare.save_per_query(workdir, result, ids, gallery)


def a_ranking(seed: int, noise: float, queries: int = 200) -> rank.Ranking:
    random = np.random.default_rng(seed)
    centre = np.random.default_rng(0).standard_normal((20, 8))
    identity = np.arange(300) % 20
    embedding = centre[identity] + noise * random.standard_normal((300, 8))
    columns = {"identity": identity, "camera": np.arange(300) % 7}
    query = {name: column[:queries] for name, column in columns.items()}
    return rank.rank(embedding[:queries], embedding, query, columns, MARKET)


def test_saved_results_read_back(tmp_path):
    result = a_ranking(1, 0.5)
    path = save(tmp_path, result, np.arange(200))
    assert path == tmp_path / "per_query" / "market1501.npz"
    assert [p.name for p in path.parent.iterdir()] == ["market1501.npz"]
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["query_id"], np.arange(200))
        for name in (
            "ap",
            "inp",
            "rank1",
            "first_positive_rank",
            "num_positives",
            "drop_cause",
            "top_ids",
            "top_scores",
        ):
            np.testing.assert_array_equal(saved[name], getattr(result, name))
        assert saved["gallery"] == 300


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
    assert (first.protocol, first.queries) == ("market1501", 200)
    assert first.a == pytest.approx(rank.summarize(worse)["mAP"])
    assert first.b == pytest.approx(rank.summarize(better)["mAP"])
    assert first.difference == pytest.approx(first.b - first.a)
    assert 0 < first.low < first.difference < first.high
    assert first.clear
    assert compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=500) == rows
    table = compare.comparison_table(rows)
    assert f"{first.b:.4f}" in table
    assert table.count("*") == sum(row.clear for row in rows)


def test_files_of_earlier_versions_compare(tmp_path):
    """They hold no rank1, only the rank of the first positive."""
    for run, noise in (("a", 1.0), ("b", 0.4)):
        path = save(tmp_path / run, a_ranking(1, noise), np.arange(200))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=50)
    with np.load(path) as saved:
        np.savez(path, **{name: saved[name] for name in saved if name != "rank1"})
    assert compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=50) == rows


def test_only_rankings_of_the_same_gallery_are_compared(tmp_path, caplog):
    """The order of the images does not matter; one image more does, though no query has another positive. The other
    protocols are compared all the same. Files of earlier versions do not say what was searched."""
    better = a_ranking(1, 0.4)
    for run, images in (("a", IMAGES), ("b", IMAGES[::-1]), ("more", np.append(IMAGES, 7)), ("other", IMAGES + 1)):
        path = save(tmp_path / run, better, np.arange(200), images)
        save(tmp_path / run, dataclasses.replace(better, protocol="same"), np.arange(200))
    assert [row.protocol for row in compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=10)] == [
        "market1501", "market1501", "same", "same",
    ]  # fmt: skip
    assert not caplog.text
    for run, size in (("more", 301), ("other", 300)):
        rows = compare.compare_runs(tmp_path / "a", tmp_path / run, samples=10)
        assert [row.protocol for row in rows] == ["same", "same"]
        assert "not compared: market1501: " in caplog.text
        assert f"{run}/per_query/market1501.npz {size}, not the same" in caplog.text
    with np.load(path) as saved:
        np.savez(path, **{name: saved[name] for name in saved if not name.startswith("gallery")})
    assert len(compare.compare_runs(tmp_path / "a", tmp_path / "other", samples=10)) == 4
    assert "not checked for market1501" in caplog.text


def test_dropped_and_missing_queries_are_not_paired(tmp_path):
    result = a_ranking(1, 0.5)
    dropped = dataclasses.replace(result, ap=np.where(np.arange(200) < 10, np.nan, result.ap))
    save(tmp_path / "a", dropped, np.arange(200))
    save(tmp_path / "b", a_ranking(1, 0.5, queries=150), np.arange(150))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=20)
    assert (rows[0].queries, rows[0].unpaired) == (140, 60)
    assert "60 queries not paired" in compare.comparison_table(rows)


def test_protocols_in_folders_and_of_one_run_only(tmp_path, caplog):
    result = a_ranking(1, 0.5)
    for run, name in itertools.product("ab", ("task_free/market1501", "market1501@top500")):
        save(tmp_path / run, dataclasses.replace(result, protocol=name), np.arange(200))
    save(tmp_path / "a", result, np.arange(200))
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=10)
    assert sorted({row.protocol for row in rows}) == ["market1501@top500", "task_free/market1501"]
    assert "only one of the runs has market1501" in caplog.text


def test_runs_that_cannot_be_compared(tmp_path):
    result = a_ranking(1, 0.5)
    save(tmp_path / "a", result, np.arange(200))
    with pytest.raises(ValueError, match=r"no per-query results in .*empty"):
        compare.compare_runs(tmp_path / "a", tmp_path / "empty")
    save(tmp_path / "other", dataclasses.replace(result, protocol="ltcc"), np.arange(200))
    with pytest.raises(ValueError, match="share no protocol"):
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


def test_bootstrap_interval_matches_the_normal_one():
    values = np.random.default_rng(1).standard_normal((2000, 2)) * [1, 3] + [0.5, 0]
    low, high = compare.bootstrap_interval(values, samples=4000, seed=0)
    error = 1.96 * values.std(axis=0) / np.sqrt(2000)
    np.testing.assert_allclose(low, values.mean(axis=0) - error, atol=error.max() * 0.1)
    np.testing.assert_allclose(high, values.mean(axis=0) + error, atol=error.max() * 0.1)
