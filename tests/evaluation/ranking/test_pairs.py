"""Related pairs: looking at linked pairs alone finds what looking at every pair finds."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.ranking import pairs
from irm_jax.evaluation.records import Records, Subset


class EveryPair:
    """A protocol that links no pairs."""

    def __init__(self, protocol):
        self.relate, self.links = protocol.relate, ()


def records_of(random: np.random.Generator, count: int) -> Records:
    return Records.of(
        identity=random.integers(0, 6, count),
        camera=random.integers(0, 3, count),
        content=random.integers(0, 30, count),
    )


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 15),
    images=st.integers(1, 60),
    at_once=st.sampled_from([1, 7, 100_000]),
)
def test_linked_pairs_are_all_related_pairs(seed, queries, images, at_once):
    """Looking only at pairs that share a linking column finds what looking at every pair finds, in any piece size."""
    random = np.random.default_rng(seed)
    query, gallery = records_of(random, queries), records_of(random, images)
    rows = random.permutation(queries)
    rule = MARKET.against_union(query_is_image=True)
    assert rule.links == ("identity", "content")
    columns = ("identity", "camera", "content")
    masks = rule.relate({k: query[k][:, None] for k in columns}, {k: gallery[k][None] for k in columns})
    same = query.identity[:, None] == gallery.identity
    original = pairs.PAIRS_AT_ONCE
    pairs.PAIRS_AT_ONCE = at_once
    try:
        for protocol in (rule, EveryPair(rule)):
            related = pairs.RelatedPairs(protocol, query, gallery, (queries, images), person=True)
            found = related.of(rows)
            for expected, chosen in zip(
                (*masks, same & ~masks[1]), (found.positive, found.junk, found.person), strict=True
            ):
                got = np.zeros((queries, images), bool)
                got[rows[found.row[chosen]], found.column[chosen]] = True
                np.testing.assert_array_equal(got, expected)
            assert (np.diff(found.row.astype(np.int64) * images + found.column) > 0).all()
            counts = related.counts
            np.testing.assert_array_equal(counts.positives, masks[0].sum(axis=1))
            np.testing.assert_array_equal(counts.junk, masks[1].sum(axis=1))
            np.testing.assert_array_equal(counts.ranked, (masks[0] | (same & ~masks[1])).sum(axis=1))
    finally:
        pairs.PAIRS_AT_ONCE = original


def test_a_part_of_the_records_is_ranked_as_if_it_were_all():
    random = np.random.default_rng(4)
    query, gallery = records_of(random, 12), records_of(random, 40)
    rows, columns = np.array([7, 2, 11]), random.permutation(40)[:25]
    part = pairs.RelatedPairs(MARKET, Subset(query, rows), Subset(gallery, columns), (3, 25))
    alone = pairs.RelatedPairs(MARKET, query.take(rows), gallery.take(columns), (3, 25))
    for field in dataclasses.fields(pairs.Pairs):
        np.testing.assert_array_equal(
            getattr(part.of(np.arange(3)), field.name), getattr(alone.of(np.arange(3)), field.name)
        )
