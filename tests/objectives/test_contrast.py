"""Which rows the contrast of a batch takes as positives and negatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import tasks
from irm_jax.losses.words import Vocabulary
from irm_jax.models.irm import EditedRows
from irm_jax.objectives.base import TrainingMix
from irm_jax.objectives.contrast import Contrast

MIX = TrainingMix(
    tasks=tuple(tasks.TASKS.values()), composed_tasks=("li",), data_sets=("a", "b"), data_set_weight=(1.0, 1.0),
    caption_weight=(0.0, 0.0), head_members=np.ones((2, 8), bool), vocabulary=Vocabulary(8, 0, 1, 2, 3),
)  # fmt: skip
OPTIONS = {"weight": 1.0, "composed_weight": 0.0, "temperature": 1.0}


def columns(**changed):
    """Six rows: three of person 0, then persons 1, 1 and 2."""
    rows = {
        "identity": [0, 0, 0, 1, 1, 2], "dataset": [0, 0, 0, 0, 1, 1], "task": [0] * 6, "modality": [0] * 6,
        "valid": [True] * 6,
    } | changed  # fmt: skip
    found = {name: np.asarray([values]) for name, values in rows.items()}
    found["attributes"] = np.asarray(rows.get("attributes", [[7]] * 6)).reshape(1, 6, -1)
    found["composed_row"] = np.zeros((1, 0), np.int32)
    return {"text": {name: jnp.asarray(x.astype(np.int32) if x.dtype == np.int64 else x) for name, x in found.items()}}


def edited(seed=0, composed=0):
    rng = np.random.default_rng(seed)
    plain, every = (jnp.asarray(rng.normal(size=(1, n, 4)), jnp.float32) for n in (6, 6 + composed))
    return EditedRows(cls=plain, cls_neck=plain, person=every, guided=every, instruction=every)


@dataclasses.dataclass
class Inputs:
    output: object
    batch: object


@dataclasses.dataclass
class Output:
    edited: EditedRows


def value(batch, rows, **options):
    objective = Contrast(MIX, **{**OPTIONS, **options})
    return jax.jit(lambda rows, batch: objective.loss(Inputs(Output(rows), batch)))(rows, batch)


def by_hand(batch, rows, positive):
    """The plain term with `positive(i, j)`, weighted as sum_d w_d mean over rows of d, over the sum of weights."""
    group = {name: np.asarray(x)[0] for name, x in batch["text"].items()}
    total = 0.0
    for feature in (np.concatenate([rows.person[0, :6], rows.guided[0, :6]], axis=-1), np.asarray(rows.cls_neck[0])):
        unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
        for i in np.flatnonzero(group["valid"]):
            others = [j for j in np.flatnonzero(group["valid"]) if j != i]
            against = sum(np.exp(unit[i] @ unit[j]) for j in others if group["identity"][j] != group["identity"][i])
            wanted = [j for j in others if group["identity"][j] == group["identity"][i] and positive(group, i, j)]
            each = [-np.log(np.exp(unit[i] @ unit[j]) / (np.exp(unit[i] @ unit[j]) + against)) for j in wanted]
            share = np.sum(group["valid"] & (group["dataset"] == group["dataset"][i]))
            total += 0.5 * (np.mean(each) if each else 0.0) / share / 2.0
    return total


def test_other_people_of_every_data_set_are_negatives():
    batch, rows = columns(), edited()
    term = value(batch, rows)
    np.testing.assert_allclose(term.loss, by_hand(batch, rows, lambda *_: True), rtol=1e-5)
    assert set(term.metrics) >= {"trad/contrast_loss"}


def test_across_modalities_the_positives_are_of_the_other_modality():
    batch, rows = columns(task=[3] * 6, modality=[0, 1, 0, 0, 1, 1]), edited(1)
    crossing = by_hand(batch, rows, lambda g, i, j: g["modality"][i] != g["modality"][j])
    np.testing.assert_allclose(value(batch, rows).loss, crossing, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(crossing, by_hand(batch, rows, lambda *_: True), rtol=1e-5)


def test_padding_counts_for_nothing():
    batch, rows = columns(valid=[True] * 5 + [False]), edited(2)
    ruined = rows.replace(cls_neck=rows.cls_neck.at[0, 5].set(jnp.nan), person=rows.person.at[0, 5].set(jnp.nan))
    np.testing.assert_allclose(value(batch, ruined).loss, by_hand(batch, rows, lambda *_: True), rtol=1e-5)


def test_a_composed_row_is_drawn_to_its_person_in_the_named_outfit_only():
    attributes = [[7], [8], [-1], [7], [7], [7]]
    batch = columns(attributes=attributes, task=[5] * 6, dataset=[0] * 6)
    group = batch["text"]
    group |= {
        "composed_row": jnp.asarray([[0]], jnp.int32), "composed_valid": jnp.asarray([[True]]),
        "composed_attributes": jnp.asarray([[[8]]], jnp.int32),
    }  # fmt: skip
    rows = edited(3, composed=1)
    term = value(batch, rows, weight=0.0, composed_weight=1.0)
    joint = np.concatenate([rows.person[0], rows.guided[0]], axis=-1)
    joint /= np.linalg.norm(joint, axis=1, keepdims=True)
    s = joint[6] @ joint[:6].T
    # Row 1 wears what is asked for; row 0 is the person in another outfit; of row 2 the outfit is not known.
    loss = -np.log(np.exp(s[1]) / (np.exp(s[1]) + np.sum(np.exp(s[[0, 3, 4, 5]]))))
    np.testing.assert_allclose(term.loss, loss / 2.0, rtol=1e-5)  # one of two data sets of weight 1
    np.testing.assert_allclose(term.metrics["li/composed_contrast_loss"], loss, rtol=1e-5)
