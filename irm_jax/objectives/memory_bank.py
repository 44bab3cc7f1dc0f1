"""Memory-bank-assisted learning (method section 7 [ours]): the keys a batch brings, and the loss against the bank."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.losses.geometry import unit_rows
from irm_jax.losses.instruction_similarity import InstructionMean, current_mean
from irm_jax.losses.memory_bank_loss import Rules, memory_bank_loss
from irm_jax.models.irm import EDITED_GROUPS, EditedRows, KeyRows
from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import Entries, MemoryBank
from irm_jax.objectives.options import LossOptions
from irm_jax.objectives.rows import Metrics, flat, join, per_task, row_weights
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training.state import KINDS

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
NO_KIND = -1


def batch_entries(rows: KeyRows, mean: InstructionMean, batch: Batch, options: LossOptions) -> Entries:
    """The momentum model's keys of all rows of a batch, in the order (block; text, visual, caption): [R * B, ...].

    [ours] Their instructions are centred by the mean of the model's own instruction features over the steps before:
    those of the first step by none. An entry does not say which instruction it is of, so an equal one counts by its
    cosine, a little under the 1 that it has within a batch (`instruction_similarity.similarity`).
    """
    assert rows.embedding is not None
    assert rows.instruction is not None
    groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch]
    own = [(g, batch[g]["instruction"] >= 0 if g in EDITED_GROUPS else None) for g in groups]
    blank = {g: jnp.full_like(batch[g]["identity"], NO_KIND) for g in groups}
    kind = join([blank[g] if o is None else jnp.where(o, KINDS.index(g), NO_KIND) for g, o in own]).astype(jnp.int32)
    instruction = flat(rows.instruction)
    if options.instruction_similarity == "centered":
        centre = current_mean(mean).astype(instruction.dtype)
        instruction = instruction - jnp.take(centre, jnp.maximum(kind, 0), axis=0)
    valid = join([batch[g]["valid"] for g in groups])
    identity = join([batch[g]["identity"] for g in groups])
    entries = Entries(
        key=unit_rows(flat(rows.embedding)),
        instruction=unit_rows(instruction),
        identity=jnp.where(valid, identity, lanes.EMPTY),
        dataset=join([batch[g]["dataset"] for g in groups]),
        task=join([batch[g]["task"] for g in groups]),
        kind=kind,
    )
    return jax.lax.stop_gradient(entries)


def bank_loss(
    rows: EditedRows, batch: Batch, entries: Entries, bank: MemoryBank, step: Array, options: LossOptions
) -> tuple[Array, Metrics]:
    """L_bank (method section 7 [ours]) of the plain rows, weighted by data set and ramp -> (loss, metrics)."""
    o = options.bank
    assert o is not None
    groups = [name for name in EDITED_GROUPS if name in batch]
    blocks, plain = rows.cls.shape[:2]
    per_block = entries.identity.shape[0] // blocks
    # The anchors' own entries stand first in each block: a slice, which moves nothing between devices.
    anchor = jax.tree.map(lambda x: flat(x.reshape(blocks, per_block, *x.shape[1:])[:, :plain]), entries)
    own_row = (jnp.arange(blocks)[:, None] * per_block + jnp.arange(plain)[None, :]).reshape(-1)
    valid = join([batch[g]["valid"] for g in groups])
    embedding = flat(jnp.concatenate([rows.person[:, :plain], rows.guided[:, :plain]], axis=-1))
    # Anchors go to the entries, never entries to the anchors: [A, 2D] is moved, the bank stays.
    embedding, anchor = jax.tree.map(mesh_lib.constrain_replicated, (embedding, anchor))
    overlap = np.zeros((len(options.data_set_weight),) * 2, bool)
    for one, other in o.known_overlap:
        overlap[one, other] = overlap[other, one] = True
    captions = tuple(spec.id for spec in options.tasks if not spec.has_query_image)
    soft_on = o.soft_weight > 0
    hard, soft, aux = memory_bank_loss(
        embedding, anchor, own_row.astype(jnp.int32), valid, entries, lanes.flat(bank),
        Rules(jnp.asarray(overlap), captions, o.task_negatives),
        temperature=o.temperature, soft=soft_on,
    )  # fmt: skip
    soft_share = o.soft_weight * lanes.full_share(bank, o.soft_ramp_pushes)
    ramp = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(o.ramp_steps, 1), 1.0)
    per_row = o.hard_weight * hard + soft_share.astype(hard.dtype) * soft
    weight = row_weights(anchor.dataset, valid, options.data_set_weight, options.total_weight).astype(hard.dtype)
    measured = {
        "bank_hard_loss": hard,
        "bank_dropped": aux.dropped.astype(hard.dtype),
        "bank_positives": aux.positives,
        "bank_negatives": aux.negatives,
    }
    if soft_on:
        measured |= {"bank_soft_loss": soft, "bank_same_identity_mass": aux.same_identity_mass}
    metrics = per_task(measured, anchor.task, valid, [t for t in options.tasks if t.kind in groups])
    filled = jnp.mean((bank.entries.identity >= 0).astype(jnp.float32))
    return o.weight * ramp.astype(hard.dtype) * jnp.sum(weight * per_row), {**metrics, "bank_filled": filled}
