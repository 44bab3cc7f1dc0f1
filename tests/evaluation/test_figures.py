"""Rows of figures: keys, labels, results.json of this version and of the one before."""

from __future__ import annotations

import json

import pytest

from irm_jax.evaluation import earlier_results, figures
from irm_jax.evaluation.figures import Figure, OpenSetFigure, Results, label, select

ROW = Figure(test_set="street", task="cc", protocol="market", mAP=0.5, queries=3)
OPEN = OpenSetFigure(
    test_set="street", task="cc", protocol="market", present=3, absent=2, auc=0.5, tpr={"0.01": 0.1},
    identified={"0.01": 0.1}, threshold={"0.01": -0.5}, roc={"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]},
)  # fmt: skip


def test_results_read_back_through_json():
    free = Figure(
        test_set="street", task="cc", protocol="market", setting="task_free", gallery="union",
        gallery_instruction="neutral", scoring=("flip", "rerank"), cut=500, mAP_tau={"0.5": None},
    )  # fmt: skip
    results = Results((ROW, free), (OPEN,), {"run": {"step": 3}})
    content = json.loads(json.dumps(results.to_json()))
    assert content["version"] == 2
    assert content["figures"][0]["rank1"] is None
    assert "follow_rate" not in content["figures"][0]
    assert Results.from_json(content) == results


def test_no_byte_of_results_changes_unnoticed(tmp_path):
    """A digit of a figure would be another figure."""
    results = Results((ROW,), (OPEN,), {"run": {"config": {"seed": 0, "names": ("a", "b")}, 3: float("1e-300")}})
    path, data = tmp_path / "results.json", json.dumps(results.to_json(), indent=1).encode()

    def read():
        found = figures.read_results(tmp_path)
        return found.figures, found.open_set, found.rest["run"]

    path.write_bytes(data)
    right = read()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert read() == right  # in white space, or in the name of the hash
        except figures.ResultsError as error:
            assert str(path) in str(error)  # noqa: PT017
    path.write_bytes(data.replace(b'"mAP": 0.5', b'"mAP": 0.6'))
    with pytest.raises(figures.ResultsError, match=rf"{path}: its content is not what was written: evaluate again"):
        read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 3, "figures": []}, "version 3 are newer"),
        ({"version": 2, "figures": [{"test_set": "a", "task": "cc", "protocol": "b", "mood": 1}]}, "no field mood"),
        ({"run": {}}, "no results of an evaluation"),
        ({"protocols": {}, "baselines": {"random": {"market1501": {}}}}, "which the results do not hold"),
    ],
)
def test_results_that_cannot_be_read(content, message):
    with pytest.raises(ValueError, match=message):
        Results.from_json(content)


@pytest.mark.parametrize(
    "changes",
    [{"setting": "free"}, {"gallery": "all"}, {"gallery_instruction": "none"}, {"scoring": ("rerank", "flip")}],
)
def test_a_row_says_what_was_ranked_in_known_words(changes):
    with pytest.raises(ValueError, match="figure of street"):
        Figure(test_set="street", task="cc", protocol="market", **changes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("market1501", "market1501/market"),
        ("task_free/procedural_cc", "procedural_cc/other_outfit (task-free)"),
        (
            "task_free/procedural_cc@own",
            "procedural_cc/other_outfit (task-free, gallery under its own instructions)",
        ),
        ("task_free/procedural_cc@test_set", "procedural_cc/other_outfit (task-free, own gallery)"),
        ("procedural_cc+identity@top500", "procedural_cc/market (top 500)"),
        ("cuhk03_np+labeled+flip+rerank", "cuhk03_labeled/market (flip + rerank)"),
        ("llcm_v2n@released+flip", "llcm/llcm_v2n_released (flip)"),
        ("market1501+distractors+rerank", "market1501/market (with distractors, rerank)"),
        ("task_free/market1501+distractors@top20", "market1501/market (task-free, with distractors, top 20)"),
        ("cuhk_pedes+rescored", "cuhk_pedes/identity (rescored)"),
        ("unheard_of+flip", "unheard_of/unheard_of (flip)"),
    ],
)
def test_names_of_the_earlier_version_become_rows(name, words):
    row = Figure.from_json({**earlier_results.row_of(name), "task": "cc"})
    assert label(row) == words
    assert row.plain == (" (" not in words or words.endswith("(task-free)"))


def test_an_earlier_name_with_unknown_parts_is_refused():
    with pytest.raises(ValueError, match="unknown parts mirrored"):
        earlier_results.row_of("market1501+mirrored")


def test_results_of_the_earlier_version_lose_nothing():
    metrics = {"mAP": 0.4, "rank1": 0.3, "rank5": 0.5, "rank10": None, "mINP": 0.1}
    table = {"0.5": 0.2, "0.9": None}
    entry = {
        "task": "li", "setting": "task_specific", "description": "positive: ...", **metrics, "queries": 9,
        "gallery": 40, "dropped": {"no_positive": 1, "tau": 0}, "mAP_tau": table, "mAP_tau_common": table,
        "mAP_tau_dropped": {"0.5": 0}, "tau_positives_kept": table, "tau_source": "attributes", "follow_rate": 0.7,
        "trials": 10, "std": metrics,
    }  # fmt: skip
    free = {**entry, "setting": "task_free", "overlap_junk": 4, "tau_missing": "why"}
    content = {
        "protocols": {"own_li": entry, "task_free/own_li": free},
        "baselines": {"random": {"own_li": metrics}, "oracle": {"own_li": metrics}},
        "swapped_instructions": {
            "own_li": {"mAP": 0.1, "mAP_own": 0.4, "queries": 8, "follow_rate": None, "by": "another person's caption"}
        },
        "open_set": {"own_li": {key: getattr(OPEN, key) for key in ("present", "absent", "auc", "tpr", "identified",
                                                                    "threshold", "roc")}},
        "run": {"config": {"evaluation": {"metric": "euclidean", "sets": {"shop": {"protocols": ["own_li"]}}}}},
        "leaks": [],
    }  # fmt: skip
    results = Results.from_json(content)
    model, union, random, oracle, swapped = results.figures
    assert {figure.test_set for figure in (*results.figures, *results.open_set)} == {"shop"}
    assert (model.metric, oracle.metric, model.gallery_size) == ("euclidean", "cosine", 40)
    for figure, values in ((model, entry), (union, free), (random, metrics), (oracle, metrics)):
        for key, value in values.items():
            assert getattr(figure, "gallery_size" if key == "gallery" else key) == value
    assert (swapped.mAP, swapped.mAP_own, swapped.queries) == (0.1, 0.4, 8)
    assert swapped.description == "under another person's caption"
    assert results.open_set[0].roc == OPEN.roc
    assert results.rest == {"run": content["run"], "leaks": []}


def test_figures_are_found_by_their_fields():
    chance = Figure(test_set="street", task="cc", protocol="market", system="random", mAP=0.1)
    other = Figure(test_set="street", task="cc", protocol="other_outfit", mAP=0.3)
    night = Figure(test_set="night", task="vi", protocol="market", mAP=0.2)
    rows = [ROW, other, chance, night]
    assert select(rows, test_set="street", system="model") == [ROW, other]
    assert figures.headlines(rows) == {"street": ROW, "night": night}
    assert figures.counterpart(rows, ROW, system="random") == chance
    assert figures.counterpart(rows, other, system="random") is None
    assert label(chance) == "street/market (random)"
