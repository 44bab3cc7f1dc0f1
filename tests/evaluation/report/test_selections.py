"""Rows selected for the tables: grouped by test set, variants under their rule, notes by fields."""

import dataclasses

from report_example import two_sets_per_task

from irm_jax.evaluation.figures import Figure, Results
from irm_jax.evaluation.report.selections import Selections, note

TEST_SETS = {"market1501": 2, "cuhk01": 3, "prcc_cross": 4, "llcm": 2, "sysu_mm01": 2}


def test_rows_are_grouped_by_test_set_and_variants_follow_their_rule() -> None:
    results = two_sets_per_task()
    selections = Selections(results)
    specific = selections.test_sets["task_specific"]
    assert {test_set.name: len(test_set.rows) for test_set in specific} == TEST_SETS
    assert [test_set.task for test_set in specific] == ["trad", "trad", "cc", "vi", "vi"]
    rows = {test_set.name: [(row.figure.protocol, row.variant) for row in test_set.rows] for test_set in specific}
    assert rows["cuhk01"] == [("market", ""), ("market", "flip"), ("market", "flip + rerank")]
    assert rows["prcc_cross"] == [
        ("prcc_cross_multi_shot", ""), ("prcc_cross_multi_shot", "flip"), ("prcc_cross_multi_shot", "top 500"),
        ("prcc_cross_single_shot", ""),
    ]  # fmt: skip
    assert rows["sysu_mm01"] == [("sysu_all", ""), ("sysu_all", "with distractors")]
    free = {test_set.name: [row.variant for row in test_set.rows] for test_set in selections.test_sets["task_free"]}
    assert free["market1501"] == ["", "gallery under its own instructions", "own gallery"]
    # Without its plain row a variant stands last, and the test set has no card.
    alone = Results(tuple(f for f in results.figures if not (f.test_set == "cuhk01" and f.plain)))
    cuhk01 = next(s for s in Selections(alone).test_sets["task_specific"] if s.name == "cuhk01")
    assert (len(cuhk01.plain), len(cuhk01.rows)) == (0, 2)


def test_notes_say_what_a_variant_is() -> None:
    figure = Figure(test_set="a", task="trad", protocol="market", description="the rule")
    assert note(figure) == "the rule"
    both = dataclasses.replace(figure, scoring=("flip", "rerank"), cut=100)
    assert note(both) == (
        "embeddings averaged over image and mirror; k-reciprocal re-ranking; "
        "compat: AP cut at 100 as in the released code, which inflates it"
    )
    union = dataclasses.replace(figure, setting="task_free", gallery="union", gallery_instruction="own")
    assert note(union) == "gallery under its own instructions, which reveal the source"
    assert "3 images left out" in note(dataclasses.replace(union, overlap_junk=3))
