"""PK sampling: what a batch may and may not contain, for arbitrary data sets, and that it is a function of the step."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batches import sampling
from data_pipelines.batches.layout import Unit, plan_batch
from data_pipelines.batches.sampling import sample


class NoWords:
    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.zeros((len(sentences), 4), np.int32)


UNITS = {
    "plain": Unit("d", "trad"),
    "two outfits": Unit("d", "cc", outfits=2),
    "three outfits": Unit("d", "cc", outfits=3, images_per_identity=5),
    "one outfit": Unit("d", "cc", outfits=1),
    "modality": Unit("d", "vi", balance_modality=True),
    "li": Unit.of_task("d", "li"),
    "ctcc": Unit.of_task("d", "ctcc", images_per_identity=6),
    "li, each its own": Unit.of_task("d", "li", share_instruction=False),
    "li, shared, any outfits": Unit.of_task("d", "li", outfits=0, composed=False),
    "caption": Unit.of_task("d", "t2i"),
    "captions": Unit.of_task("d", "t2i", images_per_identity=3),
}


def columns(rng: np.random.Generator, people: int) -> dict[str, np.ndarray]:
    """Makes random records of `people` persons with gaps in the numbering, in random order."""
    identity = np.repeat(2 * np.arange(people) + 1, rng.integers(1, 9, people))
    n = len(identity)
    order = rng.permutation(n)
    return {
        "identity": identity[order],
        "clothes": rng.integers(0, 4, n).astype(np.int32),
        "modality": rng.integers(0, 2, n).astype(np.int8),
        "sentence_count": rng.integers(1, 4, n).astype(np.int16),
        "instruction_image_count": rng.integers(1, 3, n).astype(np.int16),
    }


def one_unit(name: str, index, blocks: int = 2, per_block: int = 2, dropout: float = 0.2):
    unit = UNITS[name]
    plan = plan_batch(
        [unit], blocks * per_block * unit.images_per_identity, blocks, tokenizer=NoWords(), instruction_dropout=dropout
    )
    return plan, sampling.people_of(plan, {"d": index})


@pytest.mark.parametrize("name", UNITS)
@given(
    data_seed=st.integers(0, 10**6), seed=st.integers(0, 2**63), step=st.integers(0, 10**7), people=st.integers(4, 9)
)
def test_a_batch_keeps_every_rule(make_index, name, data_seed, seed, step, people):
    index = make_index(**columns(np.random.default_rng(data_seed), people))
    plan, grouped = one_unit(name, index)
    (drawn,) = sample(plan, grouped, seed, step)
    layout, unit, k = plan.units[0], UNITS[name], UNITS[name].images_per_identity
    assert drawn.record.shape == (2, layout.rows)
    seen = []
    for block in range(2):
        for place in range(layout.identities):
            rows = slice(place * k, (place + 1) * k)
            records = drawn.record[block, rows]
            (person,) = set(index.identity[records].tolist())
            seen.append(person)
            owned = np.flatnonzero(index.identity == person)
            _check_images(unit, index, owned, records)
            if layout.entries:
                entries = slice(place * unit.entries_per_identity, (place + 1) * unit.entries_per_identity)
                _check_instructions(unit, index, drawn, block, rows, entries, person)
            else:
                assert (drawn.entry[block, rows] == -1).all()
    assert len(set(seen)) == len(seen), "an identity came twice"


def _check_images(unit, index, owned, records) -> None:
    """Quotas of outfits or modalities; an image repeats only when its pool is smaller than the quota."""
    stratum = (
        index.modality if unit.balance_modality else index.clothes if unit.outfits else np.zeros(len(index.clothes))
    )
    wanted = 2 if unit.balance_modality else unit.outfits or 1
    chosen = Counter(stratum[records].tolist())
    assert len(chosen) == min(wanted, len(set(stratum[owned].tolist())))
    assert max(chosen.values()) - min(chosen.values()) <= 1
    for value, quota in chosen.items():
        pool = np.flatnonzero((stratum == value) & np.isin(np.arange(len(stratum)), owned))
        uses = Counter(r for r in records.tolist() if stratum[r] == value)
        assert max(uses.values()) <= -(-quota // len(pool))
        assert len(uses) == min(quota, len(pool))


def _check_instructions(unit, index, drawn, block, rows, entries, person) -> None:
    source, choice = drawn.entry_record[block], drawn.entry_choice[block]
    number = index.instruction_image_count if unit.task == "ctcc" else index.sentence_count
    assert (index.identity[source[entries]] == person).all()
    assert (choice[entries] >= 0).all()
    assert (choice[entries] < number[source[entries]]).all()
    records, entry = drawn.record[block, rows], drawn.entry[block, rows]
    assert entries.start <= entry.min()
    assert entry.max() < entries.stop
    clothes = index.clothes[records]
    if unit.share_instruction:
        np.testing.assert_array_equal(index.clothes[source[entry]], clothes)
        assert np.isin(source[entry], records).all()
        np.testing.assert_array_equal(entry[:, None] == entry, clothes[:, None] == clothes)
    else:
        np.testing.assert_array_equal(source[entry], records)
        assert len(set(entry.tolist())) == len(entry)
    if unit.composed:
        asked, valid = drawn.composed_entry[block, rows], drawn.composed_valid[block, rows]
        several = len(set(clothes.tolist())) > 1
        assert (valid == several).all()
        wanted = index.clothes[source[asked]]
        if several:
            assert (wanted != clothes).all()
            assert set(wanted.tolist()) <= set(clothes.tolist())


@pytest.mark.parametrize("name", ["two outfits", "li, each its own", "ctcc"])
def test_any_blocks_alone_equal_those_of_the_whole_batch(make_index, name):
    index = make_index(**columns(np.random.default_rng(3), 40))
    plan, people = one_unit(name, index, blocks=8, per_block=3)
    for step in (0, 1, 77):
        (whole,) = sample(plan, people, 5, step)
        for blocks in ([0], [7], [5, 2], list(range(8))):
            (part,) = sample(plan, people, 5, step, blocks)
            for field in dataclasses.fields(whole):
                np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[blocks])


def test_an_epoch_shows_every_identity_once_and_the_next_shuffles_anew(make_index):
    index = make_index(**columns(np.random.default_rng(0), 26))
    plan, people = one_unit("plain", index)  # 4 identities per batch: 6 batches per epoch, 2 identities left over

    def epoch(number: int, seed: int) -> list[int]:
        steps = range(6 * number, 6 * number + 6)
        return [int(index.identity[r]) for s in steps for r in sample(plan, people, seed, s)[0].record[:, ::4].ravel()]

    first, second, other = epoch(0, 1), epoch(1, 1), epoch(0, 2)
    assert len(first) == 24
    assert len(set(first)) == 24
    assert len(set(second)) == 24
    assert first != second
    assert first != other
    everyone = set().union(*(epoch(n, 1) for n in range(12)))
    assert everyone == set(index.identity.tolist()), "somebody is left over in every epoch"


def test_two_units_of_one_data_set_share_its_epoch(make_index):
    index = make_index(**columns(np.random.default_rng(0), 12))
    units = [Unit("d", "trad"), Unit("d", "cc", outfits=2)]
    plan = plan_batch(units, 48, 1, tokenizer=NoWords())
    people = sampling.people_of(plan, {"d": index})
    for step in range(20):
        both = [index.identity[s.record[0, ::4]].tolist() for s in sample(plan, people, 0, step)]
        assert sorted(both[0] + both[1]) == sorted(set(index.identity.tolist()))


def test_people_may_come_again_where_a_batch_takes_more_than_there_are(make_index):
    """Nobody repeats before everybody was drawn; data sets with enough people draw as without the option."""
    index = make_index(**columns(np.random.default_rng(0), 5))
    unit = Unit("d", "trad")
    plan = plan_batch([unit], 12 * 4, 12, tokenizer=NoWords(), repeat_people=True)
    (drawn,) = sample(plan, sampling.people_of(plan, {"d": index}), 3, 7)
    shown = index.identity[drawn.record[:, 0]].tolist()
    assert [len(set(shown[:5])), len(set(shown[5:10])), len(shown)] == [5, 5, 12]
    assert shown[:5] != shown[5:10]
    images = {(shown[i], tuple(sorted(drawn.record[i].tolist()))) for i in range(12)}
    assert len(images) > 8  # a repeated person draws other images
    enough = make_index(**columns(np.random.default_rng(0), 30))
    plans = [plan_batch([unit], 48, 12, tokenizer=NoWords(), repeat_people=again) for again in (True, False)]
    one, other = (sample(p, sampling.people_of(p, {"d": enough}), 3, 7)[0].record for p in plans)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["li", "ctcc", "li, shared, any outfits", "li, each its own"])
def test_a_record_of_unknown_outfit_keeps_its_own_instruction(make_index, name):
    """Nor is it composed: its outfit may be the one asked for. Records of a known outfit share as ever."""
    clothes = np.array([-1, -1, -1, -1, -1, -1, 5, 5] * 4, np.int32)
    index = make_index(identity=np.repeat(np.arange(4), 8), clothes=clothes)
    plan, people = one_unit(name, index)
    for step in range(20):
        (drawn,) = sample(plan, people, 0, step)
        for block in range(2):
            records, entry = drawn.record[block], drawn.entry[block]
            read = drawn.entry_record[block][entry]
            unknown = clothes[records] == -1
            np.testing.assert_array_equal(read[unknown], records[unknown])
            np.testing.assert_array_equal(clothes[read], clothes[records])
            np.testing.assert_array_equal(index.identity[read], index.identity[records])
            assert not drawn.composed_valid[block].any()


def test_images_and_sentences_are_drawn_evenly(make_index):
    index = make_index(identity=np.repeat(np.arange(4), 8), sentence_count=np.full(32, 4, np.int16))
    plan, people = one_unit("caption", index)
    pairs: Counter = Counter()
    for step in range(800):
        (drawn,) = sample(plan, people, 0, step)
        pairs.update(zip(drawn.entry_record.ravel().tolist(), drawn.entry_choice.ravel().tolist(), strict=True))
    counts = np.array(list(pairs.values()))
    assert len(counts) == 32 * 4
    # 3,200 draws over 128 pairs: mean 25; chi-square has 127 degrees of freedom, five standard deviations are 80.
    assert ((counts - 25) ** 2 / 25).sum() < 207


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.2, 0.17, 0.23)])
def test_instruction_dropout_rate(make_index, dropout, low, high):
    index = make_index(**columns(np.random.default_rng(0), 8))
    plan, people = one_unit("two outfits", index, dropout=dropout)
    rate = np.mean([sample(plan, people, 0, step)[0].neutral.mean() for step in range(200)])
    assert low <= rate <= high


def test_captions_are_never_dropped(make_index):
    plan, people = one_unit("captions", make_index(**columns(np.random.default_rng(0), 8)), dropout=1.0)
    assert not sample(plan, people, 0, 0)[0].neutral.any()


def test_unusable_data_is_refused_with_the_cure(make_index):
    few = make_index(identity=np.array([0, 0, 1, 1, 2]))
    with pytest.raises(ValueError, match=r"has 3 training identities, but a batch takes 4 .* lower batch_size"):
        one_unit("plain", few)
    silent = make_index(identity=np.arange(9), sentence_count=np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.int16))
    with pytest.raises(ValueError, match=r"2 of 9 training records bring no sentence \(first: 2.jpg\)"):
        one_unit("li", silent)
    blind = make_index(identity=np.arange(9), instruction_image_count=np.zeros(9, np.int16))
    with pytest.raises(ValueError, match="9 of 9 training records bring no instruction image"):
        one_unit("ctcc", blind)
    bare = make_index(identity=np.arange(9), clothes=np.full(9, -1, np.int32))
    with pytest.raises(ValueError, match="no clothes numbers"):
        one_unit("two outfits", bare)


def test_random_streams_differ_in_every_counter():
    draws = {
        sampling.random_stream(seed, purpose, *counter).integers(2**63).item()
        for seed in (0, 1, -1, 2**64 - 2)
        for purpose in (0, 1)
        for counter in ((0,), (1,), (0, 1), (0, 0, 1), (1, 1, 1))
    }
    assert len(draws) == 40
    assert sampling.random_stream(-1, 0).integers(9) == sampling.random_stream(-1, 0).integers(9)
