"""What an objective is: which rows of a batch it takes, what it asks of the momentum model, and its loss.

A step makes one pass of the momentum model and one of the model for all objectives together, in this order:

1. `draw` changes what the model reads of the batch (hides words);
2. the momentum model makes the keys that `key_request` names, and `make_keys` keeps what the objective needs of them;
3. the model reads the batch, and `loss` gives a term of the sum whose gradient is taken;
4. after the update, `stored` says which field of the state takes the keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import struct

from data_pipelines import tasks
from data_pipelines.tasks import TaskSpec
from irm_jax.losses.words import Vocabulary
from irm_jax.models.irm import IRMOutput, KeyRows

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from data_pipelines.batches.training_data import TrainingData
    from irm_jax.training.state import TrainState

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TrainingMix:
    """The data sets of a joint batch and their weights, as objectives see them.

    Attributes:
        tasks: the tasks of the batch.
        composed_tasks: names of the tasks that have composed rows.
        data_sets: names of the data sets; the position of a name is its number in a batch.
        data_set_weight: per data set, the loss weight of its rows with an instruction.
        caption_weight: per data set, the loss weight of its caption rows.
        head_members: bool[data sets, identities], the identities among which a row of each data set is classified.
        vocabulary: the special tokens of captions.
    """

    tasks: tuple[TaskSpec, ...]
    composed_tasks: tuple[str, ...]
    data_sets: tuple[str, ...]
    data_set_weight: tuple[float, ...]
    caption_weight: tuple[float, ...]
    head_members: np.ndarray
    vocabulary: Vocabulary

    @property
    def total_weight(self) -> float:
        """The number by which all weights are divided."""
        return sum(self.data_set_weight) + sum(self.caption_weight)

    def tasks_of(self, kinds: tuple[str, ...]) -> list[TaskSpec]:
        """The tasks whose instructions are of these kinds."""
        return [spec for spec in self.tasks if spec.kind in kinds]

    @classmethod
    def of(cls, data: TrainingData, identities: int) -> TrainingMix:
        """The mix of the training data, for identity heads of `identities` columns. Units of one data set add up."""
        plan, words = data.plan, data.tokenizer
        used = {layout.task_id for layout in plan.units}
        weights = {"edited": [0.0] * len(plan.datasets), "caption": [0.0] * len(plan.datasets)}
        for layout in plan.units:
            weights["caption" if layout.kind == "caption" else "edited"][layout.dataset] += layout.unit.loss_weight
        members = np.zeros((len(plan.datasets), identities), bool)
        members[:, : data.space.num_head] = data.space.members
        return cls(
            tasks=tuple(spec for spec in tasks.TASKS.values() if spec.id in used),
            composed_tasks=tuple(sorted({u.unit.task for u in plan.units if u.composed_rows})),
            data_sets=tuple(plan.datasets),
            data_set_weight=tuple(weights["edited"]),
            caption_weight=tuple(weights["caption"]),
            head_members=members,
            vocabulary=Vocabulary(words.vocab_size, words.pad_id, words.cls_id, words.sep_id, words.mask_id),
        )


@dataclasses.dataclass(frozen=True)
class KeyRequest:
    """What an objective asks of the momentum model, see `IRM.keys`.

    Attributes:
        embeddings: retrieval embeddings of all rows.
        captions: the caption rows, with the word logits of what `draw` hid.
        contrast: projections of the caption rows.
        neutral: the embeddings stand under the neutral sentence.
    """

    embeddings: bool = False
    captions: bool = False
    contrast: bool = False
    neutral: bool = False

    @property
    def empty(self) -> bool:
        """Whether no pass of the momentum model is needed."""
        return not (self.embeddings or self.captions)

    def __or__(self, other: KeyRequest) -> KeyRequest:
        names = [field.name for field in dataclasses.fields(self)]
        return KeyRequest(**{name: getattr(self, name) or getattr(other, name) for name in names})


@struct.dataclass
class Prepared:
    """What an objective made of a batch before the model reads it.

    `keys` go into the field of the state that `Objective.stored` names, once the parameters are updated; `draws` are
    read by the objective's loss alone. Both are pytrees of arrays, or None.
    """

    keys: Any = None
    draws: Any = None


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What the loss of an objective reads.

    Attributes:
        output: what the model made of the batch.
        batch: the batch as the model read it, compared columns whole on every device.
        state: the training state before the step.
        prepared: what this objective's `draw` and `make_keys` returned.
        key: random key of the batch. Numbers below 2^20 belong to dropout; an objective folds in its own.
        apply: `apply(*arrays, method=..., dropout=number)` calls another method of the model with the parameters that
            are trained, its dropout drawn from `key` with `number` folded in.
    """

    output: IRMOutput
    batch: Batch
    state: TrainState
    prepared: Prepared
    key: Array
    apply: Callable[..., Any]


class Term(NamedTuple):
    """The value of an objective.

    Attributes:
        loss: float[], already weighted.
        metrics: float[] each, by the name under which they are logged.
        changes: fields of the training state that the loss moves on, by name; `instruction_mean` is the only one.
    """

    loss: Array
    metrics: Metrics
    changes: Mapping[str, Any] = {}


class Objective:
    """A term of the training loss. Subclasses set `name` and `kinds` and define `from_config` and `loss`.

    Attributes:
        name: the name in the registry `OBJECTIVES`.
        kinds: instruction kinds of its rows; it takes part in a batch that holds any of them.
        stored: the field of the training state that keeps the keys, None if none does.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    stored: ClassVar[str | None] = None

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> Objective | None:
        """The objective as the configuration describes it; None if it is switched off. Raises ConfigError."""
        raise NotImplementedError

    @property
    def key_request(self) -> KeyRequest:
        """What the momentum model must make of a batch."""
        return KeyRequest()

    def draw(self, batch: Batch, key: Array) -> tuple[Batch, Any]:
        """Returns the batch as both models are to read it, and what was drawn for that."""
        del key
        return batch, None

    def make_keys(
        self, batch: Batch, rows: KeyRows, drawn: Any, state: TrainState, key: Array
    ) -> tuple[Batch, Prepared]:
        """Returns the batch as the model is to read it and what the loss needs, from the momentum model's `rows`."""
        del rows, state, key
        return batch, Prepared(draws=drawn)

    def loss(self, inputs: LossInputs) -> Term:
        """Returns the weighted loss of the batch, its metrics, and the fields of the state that it moves on."""
        raise NotImplementedError
