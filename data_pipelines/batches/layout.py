"""The static layout of a training batch: how many identities of each data set, and in which rows.

A batch is a dict with one group of fields per instruction kind (`text`, `visual`, `caption`); every field is a block
array [R, b, ...] whose axis 0 is sharded over devices (docs/method.md, batches). The plan fixes R, b and the rows of
every unit once, so that a batch is a function of the step and every host can make its own blocks alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipelines import tasks

SAMPLER_VERSION = 1
"""Raised whenever the same plan and seed would give another stream (part of the fingerprint)."""


@runtime_checkable
class TextEncoder(Protocol):
    """What the pipeline needs of a tokenizer."""

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Returns i32[n, L]."""
        ...


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training data set in the mix.

    Attributes:
      dataset, task: names.
      share: relative; the unit gets share / sum of shares of the batch's rows.
      images_per_identity: K.
      loss_weight: weight of its rows in the loss.
      outfits: n > 0 draws exactly min(n, owned) outfits of each identity, K/n images each.
      balance_modality: draws K/2 images per modality.
      composed: adds for every row one under the instruction of another outfit of the same person in the batch; both
        outfits must be known.
      share_instruction: gives all rows of one (identity, outfit) in a batch the same sentence or template; a row of
        unknown outfit is an outfit of its own.
      sentence: stands for the constant sentence of the task; None: the task's own.
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
    sentence: str | None = None

    def __post_init__(self) -> None:
        spec, own = tasks.task(self.task), f"unit {self.dataset!r} (task {self.task})"
        if self.share <= 0:
            raise ValueError(f"{own}: share = {self.share} must be positive; leave the unit out instead")
        if self.images_per_identity < 1:
            raise ValueError(f"{own}: images_per_identity = {self.images_per_identity} must be at least 1")
        if self.outfits > self.images_per_identity:
            raise ValueError(
                f"{own}: {self.outfits} outfits per identity do not fit into images_per_identity = "
                f"{self.images_per_identity}; raise the latter or lower `outfits`"
            )
        if self.outfits and self.balance_modality:
            raise ValueError(f"{own}: `outfits` and `balance_modality` exclude each other; set one of them")
        if (self.composed or self.share_instruction) and (spec.sentence is not None or not spec.has_query_image):
            raise ValueError(
                f"{own}: `composed` and `share_instruction` need rows with an instruction of their own (ctcc, li)"
            )
        if self.sentence is not None and spec.sentence is None:
            raise ValueError(f"{own}: `sentence` is for tasks with a constant one; here each row brings its own")

    @classmethod
    def of_task(cls, dataset: str, task: str, **changes: Any) -> Unit:
        """Returns a unit with its task's options (see `tasks`) and K = 4 (captions: 1); `changes` override fields."""
        spec = tasks.task(task)
        defaults = {
            "images_per_identity": 4 if spec.has_query_image else 1,
            "outfits": spec.outfits,
            "balance_modality": spec.balance_modality,
            "composed": spec.composed,
            "share_instruction": spec.composed,
        }
        return cls(dataset, task, **{**defaults, **changes})

    @property
    def constant(self) -> str | None:
        """The sentence that all its rows read; None: each row brings its own instruction."""
        return self.sentence or tasks.task(self.task).sentence

    @property
    def entries_per_identity(self) -> int:
        """Entries of the instruction table per identity; 0: the task's sentence is constant."""
        if self.constant is not None:
            return 0
        return self.outfits if self.share_instruction and self.outfits else self.images_per_identity


@dataclasses.dataclass(frozen=True)
class UnitLayout:
    """Where a unit stands. Counts are per block; starts count the rows, table entries and composed rows of its kind."""

    unit: Unit
    task_id: int
    kind: str
    dataset: int  # index in BatchPlan.datasets
    identities: int
    first_identity: int  # within the identities its data set gives to a whole batch (two units may share a data set)
    row: int
    rows: int
    entry: int
    entries: int  # of the instruction table; 0: the task's sentence is constant
    composed_row: int
    composed_rows: int
    constant: int  # index in BatchPlan.constants; -1: rows bring their own instruction


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """The layout of every batch of a run.

    Attributes:
      units: layouts in the order of the mix.
      datasets: names, without repeats.
      batch_size: rows of a batch over all kinds.
      batch_blocks: R.
      instruction_dropout: probability that a row reads the neutral sentence.
      constants: sentences of the tasks in use, the neutral one last.
      constant_tokens: i32[C, L], token ids of `constants`.
      repeat_people: whether a data set with fewer people than a batch takes shows them several times.
    """

    units: tuple[UnitLayout, ...]
    datasets: tuple[str, ...]
    batch_size: int
    batch_blocks: int
    instruction_dropout: float
    constants: tuple[str, ...]
    constant_tokens: np.ndarray
    repeat_people: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The instruction kinds in use, in the order of tasks.KINDS."""
        return tuple(kind for kind in tasks.KINDS if any(layout.kind == kind for layout in self.units))

    @property
    def neutral(self) -> int:
        """Index of the neutral sentence in `constants`."""
        return len(self.constants) - 1

    def title(self, layout: UnitLayout) -> str:
        """Returns the name of a unit for messages: its data set, with the task where several tasks share it."""
        name, task = layout.unit.dataset, layout.unit.task
        return name if sum(other.unit.dataset == name for other in self.units) == 1 else f"{name} ({task})"

    def of_kind(self, kind: str) -> tuple[UnitLayout, ...]:
        """Returns the layouts of one kind."""
        return tuple(layout for layout in self.units if layout.kind == kind)

    def rows(self, kind: str) -> int:
        """Returns the rows of a kind in a block (b)."""
        return sum(layout.rows for layout in self.of_kind(kind))

    def entries(self, kind: str) -> int:
        """Returns the entries of a kind's instruction table in a block (s)."""
        return sum(layout.entries for layout in self.of_kind(kind))

    def composed_rows(self, kind: str) -> int:
        """Returns the composed rows of a kind in a block (bc)."""
        return sum(layout.composed_rows for layout in self.of_kind(kind))

    def identities_per_batch(self, dataset: str) -> int:
        """Returns how many distinct identities one batch takes from a data set."""
        return self.batch_blocks * sum(u.identities for u in self.units if u.unit.dataset == dataset)

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON values; two plans with the same fingerprint (and data, seed) give the same stream."""
        return {
            "sampler_version": SAMPLER_VERSION,
            "batch_size": self.batch_size,
            "batch_blocks": self.batch_blocks,
            "instruction_dropout": self.instruction_dropout,
            "constants": list(self.constants),
            "max_length": int(self.constant_tokens.shape[1]),
            "units": [
                {**_options(u.unit), "identities_per_batch": u.identities * self.batch_blocks} for u in self.units
            ],
        }


def _options(unit: Unit) -> dict[str, Any]:
    """Returns a unit's fields for a fingerprint; its sentence is one of the plan's constants."""
    return {key: value for key, value in dataclasses.asdict(unit).items() if key != "sentence"}


def plan_batch(
    units: Sequence[Unit],
    batch_size: int,
    batch_blocks: int,
    *,
    tokenizer: TextEncoder,
    instruction_dropout: float = 0.2,
    repeat_people: bool = False,
) -> BatchPlan:
    """Lays out batches of `batch_size` rows (over all kinds) in `batch_blocks` blocks.

    Rows of a block are ordered by unit as given, then identity, then image. Shares become whole identities by the
    largest remainder in rows, a multiple of `batch_blocks` identities each and at least one per block.

    Raises:
      ValueError: no units, a size that does not divide (with the nearest that do), or a bad option.
    """
    if not units:
        raise ValueError("the mix has no data sets; name at least one unit")
    if batch_blocks < 1:
        raise ValueError(f"batch_blocks = {batch_blocks} must be at least 1")
    if not 0 <= instruction_dropout <= 1:
        raise ValueError(f"instruction_dropout = {instruction_dropout} is not a probability")
    own = [unit.constant for unit in units if unit.constant is not None]
    constants = tuple(dict.fromkeys([*own, tasks.NEUTRAL_SENTENCE]))
    datasets = tuple(dict.fromkeys(unit.dataset for unit in units))
    rows, entries, composed = (dict.fromkeys(tasks.KINDS, 0) for _ in range(3))
    taken = dict.fromkeys(datasets, 0)
    layouts = []
    for unit, identities in zip(units, identities_per_block(units, batch_size, batch_blocks), strict=True):
        spec = tasks.task(unit.task)
        layout = UnitLayout(
            unit=unit,
            task_id=spec.id,
            kind=spec.kind,
            dataset=datasets.index(unit.dataset),
            identities=identities,
            first_identity=taken[unit.dataset],
            row=rows[spec.kind],
            rows=identities * unit.images_per_identity,
            entry=entries[spec.kind],
            entries=identities * unit.entries_per_identity,
            composed_row=composed[spec.kind],
            composed_rows=identities * unit.images_per_identity if unit.composed else 0,
            constant=-1 if unit.constant is None else constants.index(unit.constant),
        )
        rows[spec.kind] += layout.rows
        entries[spec.kind] += layout.entries
        composed[spec.kind] += layout.composed_rows
        taken[unit.dataset] += identities * batch_blocks
        layouts.append(layout)
    tokens = np.asarray(tokenizer.encode(list(constants)), np.int32)
    return BatchPlan(
        tuple(layouts), datasets, batch_size, batch_blocks, instruction_dropout, constants, tokens, repeat_people
    )


def check_people(plan: BatchPlan, name: str, people: int, identities_per_batch: int) -> None:
    """Raises ValueError if a batch takes more people than a data set, called `name` in the message, has to train on."""
    if people < identities_per_batch and not plan.repeat_people:
        raise ValueError(
            f"{name} has {people} training identities, but a batch takes {identities_per_batch} different ones; lower "
            "batch_size, batch_blocks or its share, or set repeat_people=True to show them several times in a batch"
        )


def next_batch_size(units: Sequence[Unit], least: int, batch_blocks: int) -> int:
    """Returns the smallest batch of at least `least` rows that whole identities of all units fill in so many blocks."""
    valid = _valid_near(units, least, batch_blocks)
    return int(valid[valid >= least][0])


def identities_per_block(units: Sequence[Unit], batch_size: int, batch_blocks: int) -> list[int]:
    """Returns whole identities per block of each unit. Raises ValueError naming the nearest batch sizes that work."""
    steps = [batch_blocks * unit.images_per_identity for unit in units]
    total = sum(unit.share for unit in units)
    counts = apportion([batch_size * unit.share / total for unit in units], steps, max(batch_size, 0))
    if counts is not None:
        return counts
    valid = _valid_near(units, batch_size, batch_blocks)
    below, above = valid[valid < batch_size], valid[valid > batch_size]
    nearest = [int(size) for size in (*below[-1:], *above[:1])]
    wants = ", ".join(f"{unit.dataset} {step}" for unit, step in zip(units, steps, strict=True))
    raise ValueError(
        f"batch_size = {batch_size} cannot be filled with whole identities in {batch_blocks} batch blocks; the nearest "
        f"valid sizes are {' and '.join(map(str, nearest))}. Each unit needs a positive multiple of batch_blocks * "
        f"images_per_identity rows ({wants})"
    )


def _valid_near(units: Sequence[Unit], size: int, batch_blocks: int) -> np.ndarray:
    """Returns the batch sizes that work, ascending, up to one beyond `size` at least."""
    steps = [batch_blocks * unit.images_per_identity for unit in units]
    limit = max(size, sum(steps)) + 2 * max(steps)
    reachable = np.zeros(limit + 1, bool)  # sums of positive multiples of all steps
    reachable[sum(steps)] = True
    for step in set(steps):
        for total in range(step, limit + 1):
            reachable[total] |= reachable[total - step]
    return np.flatnonzero(reachable)


def apportion(quotas: Sequence[float], steps: Sequence[int], total: int) -> list[int] | None:
    """Divides the rows of a batch among units whose rows come in steps.

    With equal steps this is the largest-remainder rule (with at least one each); with unequal ones it stays exact where
    the rule would leave rows over. Ties go to the earlier unit.

    Args:
      quotas: rows that each unit should have.
      steps: rows by which each unit may grow.
      total: rows of the batch.

    Returns:
      Positive multiples m_d with sum m_d * steps_d = total and least sum (m_d * steps_d - quotas_d)^2; None: no such.
    """
    cell = math.gcd(*steps)
    if total % cell:
        return None
    cells = total // cell
    cost = np.full(cells + 1, np.inf)
    cost[0] = 0.0
    choices = []
    for quota, step in zip(reversed(quotas), reversed(steps), strict=True):
        best, choice = np.full(cells + 1, np.inf), np.zeros(cells + 1, np.int64)
        width = step // cell
        for count in range(cells // width, 0, -1):  # downwards with a strict comparison: the larger count wins a tie
            candidate = cost[: cells + 1 - count * width] + (count * step - quota) ** 2
            better = candidate < best[count * width :] - 1e-6
            best[count * width :][better] = candidate[better]
            choice[count * width :][better] = count
        cost = best
        choices.append(choice)
    if not np.isfinite(cost[cells]):
        return None
    counts = []
    for choice, step in zip(reversed(choices), steps, strict=True):
        counts.append(int(choice[cells]))
        cells -= counts[-1] * step // cell
    return counts
