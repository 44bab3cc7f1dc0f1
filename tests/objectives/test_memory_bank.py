"""Which rows are anchors of the memory bank, and what the composed ones are drawn to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import tasks
from irm_jax.losses.instruction_similarity import InstructionMean
from irm_jax.losses.words import Vocabulary
from irm_jax.models.irm import EditedRows
from irm_jax.objectives import lanes
from irm_jax.objectives.base import LossInputs, Prepared, TrainingMix
from irm_jax.objectives.lanes import MomentumKeys
from irm_jax.objectives.memory_bank import MemoryBank, MemoryBankOptions

MIX = TrainingMix(
    tasks=tuple(tasks.TASKS.values()), composed_tasks=("li",), data_sets=("a", "b"), data_set_weight=(1.0, 1.0),
    caption_weight=(0.0, 0.0), head_members=np.ones((2, 8), bool), vocabulary=Vocabulary(8, 0, 1, 2, 3),
)  # fmt: skip
LI = tasks.task("li").id
OPTIONS = MemoryBankOptions(
    temperature=1.0, weight=2.0, ramp_steps=4, hard_weight=1.0, soft_weight=0.0, soft_ramp_pushes=0,
    task_negatives=False, neutral_keys=False, composed_weight=0.0, known_overlap=(), instruction_similarity="centered",
)  # fmt: skip
MEAN = InstructionMean(jnp.asarray([[0.5, 0.0], [0.0, 0.0]]), jnp.ones(2))
BLOCKS, PLAIN = 2, 3


@dataclasses.dataclass
class State:
    memory_bank: object
    instruction_mean: object
    step: object


@dataclasses.dataclass
class Output:
    edited: EditedRows


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def case():
    """Two blocks of three text rows, of which the second and the third are composed anew in block 0, the first in 1."""
    rng = np.random.default_rng(0)
    group = {
        "identity": [[0, 0, 1], [0, 2, 2]], "dataset": [[0, 0, 1], [0, 1, 1]], "task": [[LI] * 3] * 2,
        "instruction": [[0, 1, -1], [2, 0, 1]], "composed_row": [[1, 2], [0, 0]],
        "composed_instruction": [[0, 2], [1, -1]], "clothes": [[0] * 3] * 2,
    }  # fmt: skip
    batch = {name: jnp.asarray(values, jnp.int32) for name, values in group.items()}
    batch |= {"valid": jnp.ones((2, 3), bool), "composed_valid": jnp.asarray([[True, True], [True, False]])}
    batch["composed_attributes"] = jnp.zeros((2, 2, 1), jnp.int32)
    shapes = {"cls": PLAIN, "cls_neck": PLAIN, "person": 5, "guided": 5, "instruction": 5}
    rows = EditedRows(
        **{n: jnp.asarray(rng.normal(size=(BLOCKS, count, 2)), jnp.float32) for n, count in shapes.items()}
    )
    flat = {name: np.asarray(batch[name]).reshape(-1) for name in ("identity", "dataset", "task", "instruction")}
    keys = MomentumKeys(
        key=jnp.asarray(unit(rng.normal(size=(6, 4))), jnp.float32),
        instruction=jnp.asarray(unit(rng.normal(size=(6, 2))), jnp.float32),
        identity=jnp.asarray(flat["identity"]), dataset=jnp.asarray(flat["dataset"]), task=jnp.asarray(flat["task"]),
        kind=jnp.asarray(np.where(flat["instruction"] >= 0, 0, -1), jnp.int32),
    )  # fmt: skip
    bank = lanes.create(MomentumKeys.spec(4, 2, jnp.dtype("float32")), 6, BLOCKS, PLAIN)
    return {"text": batch}, rows, keys, bank


def value(options, step=0):
    batch, rows, keys, bank = case()
    objective = MemoryBank(MIX, options)

    @jax.jit
    def loss(rows, batch, keys, bank):
        state = State(bank, MEAN, jnp.asarray(step, jnp.int32))
        return objective.loss(LossInputs(Output(rows), batch, state, Prepared(keys=keys), None, None))

    return loss(rows, batch, keys, bank)


def composed_by_hand():
    """Of each composed row: (data set, loss); its own key is that of the row that it is made of."""
    batch, rows, keys, _ = jax.tree.map(np.asarray, case())
    group, found = batch["text"], []
    for block, place in ((0, 0), (0, 1), (1, 0)):
        row = PLAIN * block + group["composed_row"][block, place]
        z = unit(np.concatenate([rows.person[block, PLAIN + place], rows.guided[block, PLAIN + place]]))
        wanted = unit(rows.instruction[block, PLAIN + place] - np.asarray(MEAN.sum[0]))
        against = sum(np.exp(z @ keys.key[j]) for j in range(6) if keys.identity[j] != keys.identity[row])
        same = [j for j in range(6) if keys.identity[j] == keys.identity[row] and j != row and keys.kind[j] == 0]
        weights = [max(0.0, float(wanted @ keys.instruction[j])) for j in same]
        each = [w * np.log1p(against / np.exp(z @ keys.key[j])) for j, w in zip(same, weights, strict=True)]
        found.append((keys.dataset[row], sum(each) / sum(weights) if sum(weights) else 0.0))
    return found


def test_composed_rows_are_drawn_to_keys_that_their_instruction_describes():
    plain, both = value(OPTIONS), value(dataclasses.replace(OPTIONS, composed_weight=3.0))
    found = composed_by_hand()
    assert sum(loss > 0 for _, loss in found) == 2  # the third person of the first block has no instruction elsewhere
    means = [np.mean([loss for dataset, loss in found if dataset == which]) for which in (0, 1)]
    ramp, weight = 0.25, 2.0
    np.testing.assert_allclose(both.loss - plain.loss, weight * ramp * 3.0 * sum(means) / 2, rtol=1e-5)
    np.testing.assert_allclose(both.metrics["li/bank_composed_loss"], np.mean([loss for _, loss in found]), rtol=1e-5)
    np.testing.assert_allclose(both.metrics["li/bank_composed_dropped"], 1 / 3, rtol=1e-6)


def test_the_weight_of_the_bank_rises_over_the_ramp():
    losses = [float(value(OPTIONS, step).loss) for step in (0, 1, 3, 9)]
    np.testing.assert_allclose(np.divide(losses, losses[-1]), [0.25, 0.5, 1.0, 1.0], rtol=1e-6)
