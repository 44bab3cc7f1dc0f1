"""P identities x K images: which records and instructions make the batch of a step.

A pure function of (plan, seed, step) in NumPy. Each identity of a batch draws from its own counter-based generator, so
any host computes any block alone and all agree. An epoch of a data set is a seeded permutation of its identities, cut
into floor(n / P) batches: no identity comes twice in a batch, nor twice in an epoch (except with `repeat_people`).
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.batches.layout import BatchPlan, Unit, UnitLayout, check_people
from data_pipelines.dataset import schema

# What a random stream is for: the first half of its key, so that no two uses ever share numbers.
_EPOCH_STREAM, _IDENTITY_STREAM, AUGMENT_STREAM, KEY_VIEW_STREAM, KEY_CAPTION_STREAM = range(5)


def random_stream(seed: int, purpose: int, *counter: int) -> np.random.Generator:
    """Returns the generator of a (seed, purpose, up to three counters); streams never overlap."""
    key = np.array([seed & (2**64 - 1), purpose], np.uint64)
    words = np.array([0, *counter, *[0] * (3 - len(counter))], np.uint64)  # word 0 counts the numbers drawn
    return np.random.Generator(np.random.Philox(key=key, counter=words))


@dataclasses.dataclass(frozen=True, eq=False)
class People:
    """The records of one unit's data set by identity, for sampling.

    Identity i of `identities` owns `record[start[i] : start[i + 1]]`; `clothes`, `stratum` and `choices` run along
    `record`. `stratum` is what the unit balances: the outfit, the modality, or 0. Where instructions are shared, each
    record of unknown outfit has a negative number of its own as `clothes`.
    """

    identities: np.ndarray  # i32[n], as in Index.identity, ascending
    start: np.ndarray  # i64[n + 1]
    record: np.ndarray  # i32[N]
    clothes: np.ndarray  # i32[N]
    stratum: np.ndarray  # i32[N]
    choices: np.ndarray  # i32[N], how many paraphrases or instruction images a record brings


def group_people(
    plan: BatchPlan, layout: UnitLayout, index: schema.Index, file_of: Callable[[int], str] | None = None
) -> People:
    """Sorts a train split by person for sampling.

    Args:
      plan: the batch plan.
      layout: one of its units.
      index: of the unit's train split.
      file_of: gives a record's file name for messages; by default it is the index's.

    Raises:
      ValueError: too few identities for one batch, records without the instruction that the task needs, or clothes
        numbers missing where the unit is to balance them.
    """
    unit, own = layout.unit, f"data set {layout.unit.dataset!r} (task {layout.unit.task})"
    identities = np.unique(index.identity)
    check_people(plan, own, len(identities), plan.identities_per_batch(unit.dataset))
    choices = index.instruction_image_count if layout.kind == "visual" else index.sentence_count
    if layout.constant < 0 and (choices == 0).any():
        bad = np.flatnonzero(choices == 0)
        first = file_of(int(bad[0])) if file_of else index.file[bad[0]]
        raise ValueError(
            f"{own}: {len(bad)} of {len(index)} training records bring no "
            f"{'instruction image' if layout.kind == 'visual' else 'sentence'} (first: {first}); build the set with "
            "instructions or train it under another task"
        )
    if (unit.outfits or unit.composed or unit.share_instruction) and (index.clothes == schema.UNKNOWN).all():
        raise ValueError(
            f"{own} has no clothes numbers, which `outfits`, `composed` and `share_instruction` need; set outfits = 0 "
            "and the others to False"
        )
    clothes = index.clothes
    if unit.share_instruction:  # two records of unknown outfit are not of the same one
        clothes = np.where(clothes == schema.UNKNOWN, -1 - np.arange(len(index)), clothes)
    stratum = index.modality if unit.balance_modality else clothes if unit.outfits else np.zeros(len(index))
    order = np.lexsort((stratum, index.identity))  # stable: records in ascending order within a stratum
    start = np.searchsorted(index.identity[order], np.append(identities, identities[-1] + 1))
    return People(
        identities.astype(np.int32),
        start,
        order.astype(np.int32),
        clothes[order].astype(np.int32),
        stratum[order].astype(np.int32),
        choices[order].astype(np.int32),
    )


def people_of(
    plan: BatchPlan, indexes: Mapping[str, schema.Index], file_of: Callable[[str, int], str] | None = None
) -> list[People]:
    """Returns `group_people` of every unit.

    Args:
      plan: the batch plan.
      indexes: data set -> index of its train split.
      file_of: (data set, record) -> file name, for messages; by default it is the index's.
    """
    names = [layout.unit.dataset for layout in plan.units]
    return [
        group_people(plan, layout, indexes[name], file_of and functools.partial(file_of, name))
        for layout, name in zip(plan.units, names, strict=True)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class UnitSample:
    """What one unit brings to R blocks (axis 0); rows and table entries count from the unit's own start."""

    record: np.ndarray  # i32[R, rows], record ids of the data set's train split
    entry: np.ndarray  # i32[R, rows], the row's entry of the instruction table; -1: constant sentence
    neutral: np.ndarray  # bool[R, rows], instruction dropout: the row reads the neutral sentence
    entry_record: np.ndarray  # i32[R, entries], the record whose instruction is the entry
    entry_choice: np.ndarray  # i32[R, entries], which paraphrase or image of that record
    composed_entry: np.ndarray  # i32[R, bc], composed row j belongs to row j
    composed_valid: np.ndarray  # bool[R, bc]

    def block(self, local: int) -> UnitSample:
        """Returns the sample of one of the R blocks, without axis 0."""
        return UnitSample(**{name: array[local] for name, array in vars(self).items()})


Sample = tuple[UnitSample, ...]
"""One UnitSample per unit, in plan order."""


def sample(
    plan: BatchPlan, people: Sequence[People], seed: int, step: int, blocks: Sequence[int] | None = None
) -> Sample:
    """Draws the batch of a step.

    Args:
      plan: the layout.
      people: one People per unit, in plan order (`group_people`).
      seed: any integer.
      step: from 0.
      blocks: global numbers of the blocks to draw, in the order of axis 0; None: all. A block's content does not depend
        on which others are drawn.

    Returns:
      One UnitSample per unit, for these blocks.
    """
    blocks = range(plan.batch_blocks) if blocks is None else blocks
    samples = []
    for number, (layout, own) in enumerate(zip(plan.units, people, strict=True)):
        per_batch = plan.identities_per_batch(layout.unit.dataset)
        identities = _batch_identities(layout, own, per_batch, seed, step)
        filler = _Filler(layout, own, plan.instruction_dropout, len(blocks))
        for local, block in enumerate(blocks):
            for place in range(layout.identities):
                position = block * layout.identities + place
                rng = random_stream(seed, _IDENTITY_STREAM, step, number, position)
                filler.identity(rng, local, place, int(identities[position]))
        samples.append(filler.out)
    return tuple(samples)


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, dataset: int, epoch: int, count: int) -> np.ndarray:
    return random_stream(seed, _EPOCH_STREAM, dataset, epoch).permutation(count)


def _batch_identities(layout: UnitLayout, people: People, per_batch: int, seed: int, step: int) -> np.ndarray:
    """Returns positions in `people.identities` of this unit's identities in the whole batch of a step."""
    count, dataset = len(people.identities), zlib.crc32(layout.unit.dataset.encode())
    if count < per_batch:  # plan.repeat_people: everybody, before anybody comes again
        rounds = -(-per_batch // count)
        orders = [_permutation(seed, dataset, step * rounds + i, count) for i in range(rounds)]
        return np.concatenate(orders)[layout.first_identity :]
    epoch, batch = divmod(step, count // per_batch)
    order = _permutation(seed, dataset, epoch, count)
    return order[batch * per_batch + layout.first_identity :]


def _draw(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` members of `pool`, each floor or ceil(count / len(pool)) times."""
    if len(pool) >= count:
        return pool[rng.permutation(len(pool))[:count]]
    rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate(rounds)[:count]


def _draw_images(rng: np.random.Generator, unit: Unit, stratum: np.ndarray) -> np.ndarray:
    """Draws K of an identity's records (positions 0..len(stratum)-1), in equal parts of the strata that it balances."""
    count = unit.images_per_identity
    wanted = 2 if unit.balance_modality else unit.outfits
    owned = stratum[np.flatnonzero(np.diff(stratum, prepend=stratum[0] - 1))] if wanted else stratum[:1]
    if len(owned) == 1 or wanted == 1:
        keep = np.flatnonzero(stratum == rng.choice(owned)) if wanted else np.arange(len(stratum))
        return _draw(rng, keep, count)
    chosen = rng.permutation(owned)[: min(wanted, count)]
    quotas = [count // len(chosen) + (i < count % len(chosen)) for i in range(len(chosen))]
    return np.concatenate(
        [_draw(rng, np.flatnonzero(stratum == s), quota) for s, quota in zip(chosen, quotas, strict=True)]
    )


class _Filler:
    """Fills the arrays of one unit, identity by identity (all draws of an identity come from its own generator)."""

    def __init__(self, layout: UnitLayout, people: People, dropout: float, blocks: int) -> None:
        self.layout, self.people, self.dropout = layout, people, dropout
        self.out = UnitSample(
            record=np.zeros((blocks, layout.rows), np.int32),
            entry=np.full((blocks, layout.rows), -1, np.int32),
            neutral=np.zeros((blocks, layout.rows), bool),
            entry_record=np.zeros((blocks, layout.entries), np.int32),
            entry_choice=np.zeros((blocks, layout.entries), np.int32),
            composed_entry=np.zeros((blocks, layout.composed_rows), np.int32),
            composed_valid=np.zeros((blocks, layout.composed_rows), bool),
        )

    def identity(self, rng: np.random.Generator, block: int, place: int, person: int) -> None:
        """Draws person `person` (position in People) as identity number `place` of local block `block`."""
        unit, people, out = self.layout.unit, self.people, self.out
        begin, end = people.start[person], people.start[person + 1]
        drawn = begin + _draw_images(rng, unit, people.stratum[begin:end])
        rows = slice(place * unit.images_per_identity, (place + 1) * unit.images_per_identity)
        out.record[block, rows] = people.record[drawn]
        if self.layout.kind != "caption":
            out.neutral[block, rows] = rng.random(len(drawn)) < self.dropout
        if self.layout.entries == 0:
            return
        clothes = people.clothes[drawn]
        if unit.share_instruction:
            _, sources, entry = np.unique(clothes, return_index=True, return_inverse=True)
        else:
            sources = entry = np.arange(len(drawn))
        # An identity with fewer outfits than entries repeats its first instruction: no entry is ever empty.
        per_identity = unit.entries_per_identity
        sources = np.concatenate([sources, np.full(per_identity - len(sources), sources[0])])
        first = place * per_identity
        out.entry[block, rows] = first + entry
        out.entry_record[block, first : first + per_identity] = people.record[drawn[sources]]
        out.entry_choice[block, first : first + per_identity] = rng.integers(people.choices[drawn[sources]])
        if unit.composed:
            for row in range(len(drawn)):
                other = np.flatnonzero((clothes != clothes[row]) & (clothes >= 0) & (clothes[row] >= 0))
                valid = len(other) > 0
                wanted = entry[other[rng.integers(len(other))]] if valid else entry[row]
                out.composed_entry[block, rows.start + row] = first + wanted
                out.composed_valid[block, rows.start + row] = valid
