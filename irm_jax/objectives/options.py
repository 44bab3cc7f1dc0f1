"""What the training step is told about its losses: plain values, no configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from data_pipelines.tasks import TaskSpec
from irm_jax.losses.words import Vocabulary


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and margins of method section 5. `data_set_weight` of rows with an instruction and `caption_weight` of
    caption rows, by data-set number; `tasks`: those of the batch; `composed_tasks`: names of those with composed rows.
    """

    tasks: tuple[TaskSpec, ...]
    composed_tasks: tuple[str, ...]
    data_set_weight: tuple[float, ...]
    caption_weight: tuple[float, ...]
    alpha: float
    triplet_unit: Literal["feature", "spread"]  # of the triplets' distances
    margin: float
    rank_weight: float
    instruction_similarity: Literal["centered", "raw"]
    instruction_mean_momentum: float
    momentum: float  # decay of the momentum model
    composed_weight: float
    captions: CaptionOptions
    bank: BankOptions | None = None  # of IRM++; None: IRM

    @property
    def total_weight(self) -> float:
        """What all weights are divided by."""
        return sum(self.data_set_weight) + sum(self.caption_weight)


@dataclasses.dataclass(frozen=True)
class BankOptions:
    """Memory-bank-assisted learning, method section 7. `known_overlap`: pairs of data-set numbers, see `Rules`."""

    temperature: float
    weight: float  # of the bank's loss ...
    ramp_steps: int  # ... reached over so many steps
    hard_weight: float  # of hard supervision
    soft_weight: float  # lambda, of soft supervision ...
    soft_ramp_pushes: int  # ... reached over so many batches once the bank is full
    task_negatives: bool
    known_overlap: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """Text-to-image objectives, method section 6; a weight of 0 leaves one out. `queue`: contrast with momentum keys
    and a queue of them in four directions, instead of the batch alone in two."""

    contrastive_weight: float
    matching_weight: float
    masked_weight: float
    replaced_weight: float
    queue: bool
    soft_weight: float  # of the momentum model's soft targets ...
    soft_ramp_steps: int  # ... reached over so many steps
    masked_probability: float
    replaced_probability: float
    release_mlm_axis: bool
    release_mask_sep: bool
    vocabulary: Vocabulary

    @property
    def needs_momentum(self) -> bool:
        return self.queue or self.masked_weight > 0 or self.replaced_weight > 0

    @property
    def needs_fusion(self) -> bool:
        return self.matching_weight > 0 or self.masked_weight > 0 or self.replaced_weight > 0
