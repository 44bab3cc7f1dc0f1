"""The static layout of a training batch: how many identities of each data set, in which rows of which group.

A batch is a dict of groups (`text`, `visual`, `caption`); every field of a group is a block array [R, b, ...] whose
axis 0 is sharded over devices (method.md section 8). The plan fixes R, b and the place of every unit once, so that a
batch is a function of the step and every host can make just its own blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines import tasks
from data_pipelines.batches import shares

SAMPLER_VERSION = 1
"""Raised whenever the same plan and seed would give another stream (part of the fingerprint)."""


class TextEncoder(Protocol):
    """What the pipeline needs of a tokenizer."""

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Returns i32[n, L]."""
        ...


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training data set in the mix.

    `share` is relative: its part of the batch's rows is share / sum of shares. `outfits` = n > 0 draws exactly
    min(n, owned) outfits of each identity, K/n images each; `balance_modality` K/2 images a modality; `composed` adds
    for every row one under the instruction of another outfit of the same person in the batch (ctcc, li) [ours];
    `share_instruction` gives all rows of one (identity, outfit) in a batch the same sentence or template.
    """

    dataset: str
    task: str
    share: float = 1.0
    images_per_identity: int = 4
    loss_weight: float = 1.0
    outfits: int = 0
    balance_modality: bool = False
    composed: bool = False
    share_instruction: bool = False

    def __post_init__(self) -> None:
        spec, own = tasks.task(self.task), f"unit {self.dataset!r} (task {self.task})"
        if self.share <= 0:
            raise ValueError(f"{own}: share = {self.share} must be positive; leave the unit out instead")
        if self.images_per_identity < 1:
            raise ValueError(f"{own}: images_per_identity = {self.images_per_identity} must be at least 1")
        if self.outfits > self.images_per_identity:
            raise ValueError(
                f"{own}: {self.outfits} outfits an identity do not fit into images_per_identity = "
                f"{self.images_per_identity}; raise the latter or lower `outfits`"
            )
        if self.outfits and self.balance_modality:
            raise ValueError(f"{own}: `outfits` and `balance_modality` exclude each other; set one of them")
        if (self.composed or self.share_instruction) and (spec.sentence is not None or not spec.has_query_image):
            raise ValueError(
                f"{own}: `composed` and `share_instruction` need rows with an instruction of their own (ctcc, li)"
            )

    @classmethod
    def of_task(cls, dataset: str, task: str, **changes: Any) -> Unit:
        """A unit with its task's own options (tasks.py) and K = 4 (captions: 1); `changes` override fields."""
        spec = tasks.task(task)
        defaults = {
            "images_per_identity": 4 if spec.has_query_image else 1,
            "outfits": spec.outfits,
            "balance_modality": spec.balance_modality,
            "composed": spec.composed,
            "share_instruction": spec.composed,
        }
        return cls(dataset, task, **{**defaults, **changes})


@dataclasses.dataclass(frozen=True)
class UnitLayout:
    """Where a unit stands. Counts are per block; the starts are in its group's rows, table slots and composed rows."""

    unit: Unit
    task_id: int
    group: str
    dataset: int  # index in BatchPlan.datasets
    identities: int
    first_identity: int  # within the identities its data set gives to a whole batch (two units may share a data set)
    row: int
    rows: int
    slot: int
    slots: int  # 0: the task's sentence is constant
    slots_per_identity: int
    composed_row: int
    composed_rows: int
    constant: int  # index in BatchPlan.constants; -1: rows bring their own instruction


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """The layout of every batch of a run. `constants`: the tasks' sentences in use, the neutral one last."""

    units: tuple[UnitLayout, ...]
    datasets: tuple[str, ...]
    batch_size: int
    batch_blocks: int
    instruction_dropout: float
    constants: tuple[str, ...]
    constant_tokens: np.ndarray  # i32[C, L]
    repeat_people: bool = False  # [ours] a data set with fewer people than a batch takes shows them several times

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in use, in the order of tasks.GROUPS."""
        return tuple(group for group in tasks.GROUPS if any(layout.group == group for layout in self.units))

    @property
    def neutral(self) -> int:
        """Index of the neutral sentence in `constants`."""
        return len(self.constants) - 1

    def in_group(self, group: str) -> tuple[UnitLayout, ...]:
        return tuple(layout for layout in self.units if layout.group == group)

    def rows(self, group: str) -> int:
        """Rows of a group in a block (b)."""
        return sum(layout.rows for layout in self.in_group(group))

    def slots(self, group: str) -> int:
        """Slots of a group's instruction table in a block (s)."""
        return sum(layout.slots for layout in self.in_group(group))

    def composed_rows(self, group: str) -> int:
        """Composed rows of a group in a block (bc)."""
        return sum(layout.composed_rows for layout in self.in_group(group))

    def identities_per_batch(self, dataset: str) -> int:
        """Distinct identities that one batch takes from a data set."""
        return self.batch_blocks * sum(u.identities for u in self.units if u.unit.dataset == dataset)

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able: two plans with the same fingerprint (and data, seed) give the same stream."""
        return {
            "sampler_version": SAMPLER_VERSION,
            "batch_size": self.batch_size,
            "batch_blocks": self.batch_blocks,
            "instruction_dropout": self.instruction_dropout,
            "constants": list(self.constants),
            "max_length": int(self.constant_tokens.shape[1]),
            "units": [
                {**dataclasses.asdict(u.unit), "identities_per_batch": u.identities * self.batch_blocks}
                for u in self.units
            ],
        }


def _identities_per_block(units: Sequence[Unit], batch_size: int, batch_blocks: int) -> list[int]:
    """Whole identities of each unit in a block. Raises ValueError naming the nearest batch sizes that work."""
    steps = [batch_blocks * unit.images_per_identity for unit in units]
    total = sum(unit.share for unit in units)
    counts = shares.apportion([batch_size * unit.share / total for unit in units], steps, max(batch_size, 0))
    if counts is not None:
        return counts
    valid = np.flatnonzero(shares.valid_sizes(steps, max(batch_size, sum(steps)) + 2 * max(steps)))
    below, above = valid[valid < batch_size], valid[valid > batch_size]
    nearest = [int(size) for size in (*below[-1:], *above[:1])]
    wants = ", ".join(f"{unit.dataset} {step}" for unit, step in zip(units, steps, strict=True))
    raise ValueError(
        f"batch_size = {batch_size} cannot be filled with whole identities in {batch_blocks} batch blocks; the nearest "
        f"valid sizes are {' and '.join(map(str, nearest))}. Each unit needs a positive multiple of batch_blocks * "
        f"images_per_identity rows ({wants})"
    )


def next_batch_size(units: Sequence[Unit], least: int, batch_blocks: int) -> int:
    """The smallest batch of at least `least` rows that whole identities of all units fill in so many blocks."""
    steps = [batch_blocks * unit.images_per_identity for unit in units]
    valid = np.flatnonzero(shares.valid_sizes(steps, max(least, sum(steps)) + 2 * max(steps)))
    return int(valid[valid >= least][0])


def plan_batch(
    units: Sequence[Unit],
    batch_size: int,
    batch_blocks: int,
    *,
    tokenizer: TextEncoder,
    instruction_dropout: float = 0.2,
    repeat_people: bool = False,
) -> BatchPlan:
    """Lays out batches of `batch_size` rows (over all groups) in `batch_blocks` blocks.

    Rows of a block stand by unit in the order given, then identity, then image. Shares become whole identities by the
    largest remainder in rows, a multiple of `batch_blocks` identities each and at least one a block.

    Raises:
      ValueError: no units, a size that does not divide (with the nearest that do), or a bad option.
    """
    if not units:
        raise ValueError("the mix has no data sets; name at least one unit")
    if batch_blocks < 1:
        raise ValueError(f"batch_blocks = {batch_blocks} must be at least 1")
    if not 0 <= instruction_dropout <= 1:
        raise ValueError(f"instruction_dropout = {instruction_dropout} is not a probability")
    specs = [tasks.task(unit.task) for unit in units]
    constants = tuple(dict.fromkeys([s.sentence for s in specs if s.sentence is not None] + [tasks.NEUTRAL_SENTENCE]))
    datasets = tuple(dict.fromkeys(unit.dataset for unit in units))
    rows, slots, composed = (
        dict.fromkeys(tasks.GROUPS, 0),
        dict.fromkeys(tasks.GROUPS, 0),
        dict.fromkeys(tasks.GROUPS, 0),
    )
    taken = dict.fromkeys(datasets, 0)
    layouts = []
    for unit, spec, identities in zip(
        units, specs, _identities_per_block(units, batch_size, batch_blocks), strict=True
    ):
        per_identity = unit.images_per_identity
        if spec.sentence is not None:
            per_identity = 0
        elif unit.share_instruction and unit.outfits:
            per_identity = unit.outfits
        layout = UnitLayout(
            unit=unit,
            task_id=spec.id,
            group=spec.group,
            dataset=datasets.index(unit.dataset),
            identities=identities,
            first_identity=taken[unit.dataset],
            row=rows[spec.group],
            rows=identities * unit.images_per_identity,
            slot=slots[spec.group],
            slots=identities * per_identity,
            slots_per_identity=per_identity,
            composed_row=composed[spec.group],
            composed_rows=identities * unit.images_per_identity if unit.composed else 0,
            constant=-1 if spec.sentence is None else constants.index(spec.sentence),
        )
        rows[spec.group] += layout.rows
        slots[spec.group] += layout.slots
        composed[spec.group] += layout.composed_rows
        taken[unit.dataset] += identities * batch_blocks
        layouts.append(layout)
    tokens = np.asarray(tokenizer.encode(list(constants)), np.int32)
    return BatchPlan(
        tuple(layouts), datasets, batch_size, batch_blocks, instruction_dropout, constants, tokens, repeat_people
    )


def check_people(plan: BatchPlan, own: str, people: int, identities_per_batch: int) -> None:
    """Raises ValueError if a batch takes more people than data set `own` (as the message names it) has to train on."""
    if people < identities_per_batch and not plan.repeat_people:
        raise ValueError(
            f"{own} has {people} training identities, but a batch takes {identities_per_batch} different ones; lower "
            "batch_size, batch_blocks or its share, or set repeat_people=True to show them several times in a batch"
        )
