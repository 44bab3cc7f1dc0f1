"""One training step: forward, losses, update. Only [B, D] features cross devices between forward and losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from data_pipelines.tasks import TaskSpec
from irm_jax import memory_bank, momentum, sharding
from irm_jax.losses.adaptive_triplet import adaptive_triplet_loss
from irm_jax.losses.composed_triplet import composed_triplet_loss
from irm_jax.losses.contrastive import clip_temperature, contrastive_loss
from irm_jax.losses.geometry import group_spread, unit_rows
from irm_jax.losses.identity import identity_loss
from irm_jax.losses.instruction_similarity import InstructionMean, current_mean, similarity, update_mean
from irm_jax.losses.memory_bank_loss import Rules, memory_bank_loss
from irm_jax.memory_bank import Entries, MemoryBank
from irm_jax.models.irm import EDITED_GROUPS, IRM, CaptionRows, EditedRows
from irm_jax.state import KINDS, TrainState

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
Metrics = dict[str, Array]
NO_KIND = -1


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and margins of method section 5. `data_set_weight` by data-set number; `tasks`: those of the batch;
    `composed_tasks`: names of those with composed rows."""

    tasks: tuple[TaskSpec, ...]
    composed_tasks: tuple[str, ...]
    data_set_weight: tuple[float, ...]
    alpha: float
    triplet_unit: Literal["feature", "spread"]  # of the triplets' distances
    margin: float
    rank_weight: float
    instruction_similarity: Literal["centered", "raw"]
    instruction_mean_momentum: float
    composed_weight: float
    contrastive_weight: float
    bank: BankOptions | None = None  # of IRM++; None: IRM


@dataclasses.dataclass(frozen=True)
class BankOptions:
    """Memory-bank-assisted learning, method section 7. `known_overlap`: pairs of data-set numbers, see `Rules`."""

    momentum: float  # decay of the momentum model
    temperature: float
    weight: float  # of the bank's loss ...
    ramp_steps: int  # ... reached over so many steps
    soft_weight: float  # lambda, of soft against hard supervision ...
    soft_ramp_steps: int  # ... reached over so many steps once the bank is full
    task_negatives: bool
    known_overlap: tuple[tuple[int, int], ...]


def make_train_step(
    model: IRM, optimizer: optax.GradientTransformation, options: LossOptions, head_members: Array, mesh: Mesh
) -> Callable[[TrainState, Batch, Array, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted `step(state, batch, constant_tokens, key) -> (state, metrics)`; the state is donated.

    `head_members` bool[data sets, identities]: the identities among which a row is classified. Arrays of `batch` may
    carry a leading axis of accumulated batches: each is mined and normalised alone, their gradients are averaged.
    """

    def loss_of(
        params: Any, state: TrainState, batch: Batch, constants: Array, key: Array, entries: Entries | None
    ) -> Any:
        output, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats}, batch, constants, train=True,
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip
        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        mean = state.instruction_mean
        if output.edited is not None:
            loss, mean, part = edited_loss(output.edited, output.heads, batch, mean, options, head_members)
            total, metrics = total.astype(loss.dtype) + loss, {**metrics, **part}
        if entries is not None and options.bank is not None:
            assert output.edited is not None  # config_check
            assert state.memory_bank is not None
            loss, part = bank_loss(output.edited, batch, entries, state.memory_bank, state.step, options)
            total, metrics = total + loss, {**metrics, **part}
        if output.caption is not None:
            loss, part = caption_loss(output.caption, batch["caption"], options)
            total, metrics = total.astype(loss.dtype) + loss, {**metrics, **part}
        return total, (changed["batch_stats"], mean, {"loss": total, **metrics})

    def gradients(state: TrainState, batch: Batch, constants: Array, key: Array) -> Any:
        """-> ((loss, (batch_stats, mean, metrics, entries)), gradient): of one batch, its keys ready to be pushed."""
        entries = batch_entries(model, state, batch, constants, options) if options.bank else None
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state, batch, constants, key, entries
        )
        return (loss, (*rest, entries)), grads

    def step(state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        if next(iter(batch.values()))["identity"].ndim == 2:
            (_, (batch_stats, mean, metrics, entries)), grads = gradients(state, batch, constants, key)
            pushed = [entries]
        else:
            batch_stats, mean, metrics, grads, pushed = _accumulate(gradients, state, batch, constants, key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its python scalars and integer counts freely
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
        new = TrainState(state.step + 1, params, batch_stats, mean, opt_state)
        if options.bank is not None and state.memory_bank is not None:
            bank = state.memory_bank
            for entries in pushed:
                bank = memory_bank.push(bank, entries)
            average = momentum.update(state.momentum_params, params, options.bank.momentum)
            new = dataclasses.replace(new, momentum_params=average, memory_bank=bank)
        return new, metrics

    def in_mesh(state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, Metrics]:
        shardings = sharding.shardings(state, mesh)
        new, metrics = step(state, batch, constants, key)
        return jax.lax.with_sharding_constraint(new, shardings), metrics

    return jax.jit(in_mesh, donate_argnums=0)


def _accumulate(gradients: Callable[..., Any], state: TrainState, batch: Batch, constants: Array, key: Array) -> Any:
    """Averages gradients and metrics over the leading axis; statistics pass from one batch to the next.

    Returns (batch_stats, mean, metrics, gradients, [keys of each batch])."""
    count = next(iter(batch.values()))["identity"].shape[0]

    def one(carry: Any, inputs: Any) -> tuple[Any, Any]:
        batch_stats, mean, sums = carry
        index, part = inputs
        here = dataclasses.replace(state, batch_stats=batch_stats, instruction_mean=mean)
        (_, (batch_stats, mean, metrics, entries)), grads = gradients(
            here, part, constants, jax.random.fold_in(key, index)
        )
        return (batch_stats, mean, jax.tree.map(jnp.add, sums, (metrics, grads))), entries

    first = jax.tree.map(lambda x: x[0], batch)
    (_, (_, _, metrics, _)), grads = jax.eval_shape(gradients, state, first, constants, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, grads))
    start = (state.batch_stats, state.instruction_mean, zeros)
    (batch_stats, mean, sums), entries = jax.lax.scan(one, start, (jnp.arange(count), batch))
    metrics, grads = jax.tree.map(lambda x: x / count, sums)
    return batch_stats, mean, metrics, grads, [jax.tree.map(lambda x, i=i: x[i], entries) for i in range(count)]


def edited_loss(
    rows: EditedRows,
    heads: Mapping[str, Array],
    batch: Batch,
    mean: InstructionMean,
    options: LossOptions,
    head_members: Array,
) -> tuple[Array, InstructionMean, Metrics]:
    """L_IRM (method section 5) plus the composed-row triplet [ours], weighted by data set -> (loss, mean, metrics).

    L = 1/2[CE(person)+CE(guided)] + alpha/2[T(person)+T(guided)] + CE(cls) + alpha*T(cls), T(cls) before its neck.
    """
    groups = [name for name in EDITED_GROUPS if name in batch]
    fields = {
        name: _join([batch[g][name] for g in groups])
        for name in ("identity", "dataset", "task", "attributes", "valid", "instruction_key")
    }
    # A row whose instruction is a constant sentence is of kind text, whatever its group.
    kind = _join(
        [jnp.where((batch[g]["instruction"] >= 0) & (g == "visual"), KINDS.index("visual"), 0) for g in groups]
    ).astype(jnp.int32)
    plain = rows.cls.shape[1]
    cls, cls_neck = _flat(rows.cls), _flat(rows.cls_neck)
    person, guided = _flat(rows.person[:, :plain]), _flat(rows.guided[:, :plain])
    instruction = _flat(rows.instruction[:, :plain])
    identity, dataset, valid = fields["identity"], fields["dataset"], fields["valid"]

    # Constant sentences would draw the mean of texts to themselves; their similarity (1) needs no centring.
    own = _join([batch[g]["instruction"] for g in groups]) >= 0
    mean = update_mean(mean, instruction, kind, valid & own, options.instruction_mean_momentum)
    rho = similarity(
        instruction, fields["instruction_key"], kind, current_mean(mean), mode=options.instruction_similarity
    )
    allowed = jnp.take(head_members, dataset, axis=0)
    ce, correct = {}, {}
    for name, feature in (("cls", cls_neck), ("person", person), ("guided", guided)):
        ce[name], correct[name] = identity_loss(feature, heads[name], identity, allowed)
    triplet, aux = {}, {}
    for name, feature in (("cls", cls), ("person", person), ("guided", guided)):
        scaled = _in_units(feature, dataset, distance_unit(feature, dataset, valid, options))
        triplet[name], aux[name] = adaptive_triplet_loss(
            scaled, identity, dataset, valid, rho, margin=options.margin, rank_weight=options.rank_weight
        )
    identity_part = 0.5 * (ce["person"] + ce["guided"]) + ce["cls"]
    triplet_part = 0.5 * (triplet["person"] + triplet["guided"]) + triplet["cls"]
    weight = _row_weights(dataset, valid, options)
    per_row = identity_part + options.alpha * triplet_part
    loss = jnp.sum(weight.astype(per_row.dtype) * per_row)
    measured = {
        "identity_loss": identity_part,
        "triplet_loss": triplet_part,
        "identity_accuracy": correct["person"].astype(identity_part.dtype),
        "dropped_anchors": aux["person"].dropped.astype(identity_part.dtype),
        "loss": per_row,
    }
    present = [t for t in options.tasks if t.group in groups]
    metrics = _per_task(measured, fields["task"], valid, present)
    kept = valid & ~aux["person"].dropped
    anchors = {"mean_beta": aux["person"].beta_1, "active_triplets": aux["person"].active.astype(per_row.dtype)}
    metrics |= _per_task(anchors, fields["task"], kept, present)
    if rows.person.shape[1] > plain:
        extra, part = _composed_loss(rows, heads, batch, groups, fields, options, head_members)
        loss, metrics = loss + extra, {**metrics, **part}
    return loss, mean, metrics


def _composed_loss(
    rows: EditedRows,
    heads: Mapping[str, Array],
    batch: Batch,
    groups: list[str],
    fields: Mapping[str, Array],
    options: LossOptions,
    head_members: Array,
) -> tuple[Array, Metrics]:
    """[ours] Rows under the instruction of another owned outfit: their person, in that outfit, must be nearest."""
    plain = rows.cls.shape[1]
    composed = [g for g in groups if batch[g]["composed_row"].shape[1]]

    def of_row(name: str) -> Array:
        picks = [jnp.take_along_axis(batch[g][name], batch[g]["composed_row"], axis=1) for g in composed]
        return _join(picks)

    identity, dataset, task = of_row("identity"), of_row("dataset"), of_row("task")
    valid = _join([batch[g]["composed_valid"] for g in composed])
    wanted = _join([batch[g]["composed_attributes"] for g in composed])
    allowed = jnp.take(head_members, dataset, axis=0)
    ce, triplet, aux = [], [], []
    for name, feature in (("person", rows.person), ("guided", rows.guided)):
        anchor, candidates = _flat(feature[:, plain:]), _flat(feature[:, :plain])
        ce.append(identity_loss(anchor, heads[name], identity, allowed)[0])
        unit = distance_unit(candidates, fields["dataset"], fields["valid"], options)
        loss, info = composed_triplet_loss(
            _in_units(anchor, dataset, unit), identity, dataset, wanted, valid,
            _in_units(candidates, fields["dataset"], unit), fields["identity"], fields["dataset"],
            fields["attributes"], fields["valid"],
            margin=options.margin,
        )  # fmt: skip
        triplet.append(loss)
        aux.append(info)
    per_row = 0.5 * (ce[0] + ce[1]) + options.alpha * 0.5 * (triplet[0] + triplet[1])
    weight = _row_weights(dataset, valid, options).astype(per_row.dtype)
    measured = {
        "composed_loss": per_row,
        "composed_active": aux[0].active.astype(per_row.dtype),
        "composed_dropped": aux[0].dropped.astype(per_row.dtype),
    }
    metrics = _per_task(measured, task, valid, [t for t in options.tasks if t.name in options.composed_tasks])
    return options.composed_weight * jnp.sum(weight * per_row), metrics


def batch_entries(model: IRM, state: TrainState, batch: Batch, constants: Array, options: LossOptions) -> Entries:
    """The momentum model's keys of all rows of a batch, in the order (block; text, visual, caption): [R * B, ...]."""
    # The heads are there because the model declares them; no key reads them.
    params = {**state.params, **state.momentum_params}
    rows, _ = model.apply(
        {"params": params, "batch_stats": state.batch_stats}, batch, constants, method="keys", mutable=["batch_stats"]
    )
    groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch]
    own = [(g, batch[g]["instruction"] >= 0 if g in EDITED_GROUPS else None) for g in groups]
    blank = {g: jnp.full_like(batch[g]["identity"], NO_KIND) for g in groups}
    kind = _join([blank[g] if o is None else jnp.where(o, KINDS.index(g), NO_KIND) for g, o in own]).astype(jnp.int32)
    instruction = _flat(rows.instruction)
    if options.instruction_similarity == "centered":
        mean = current_mean(state.instruction_mean).astype(instruction.dtype)
        instruction = instruction - jnp.take(mean, jnp.maximum(kind, 0), axis=0)
    valid = _join([batch[g]["valid"] for g in groups])
    identity = _join([batch[g]["identity"] for g in groups])
    entries = Entries(
        key=unit_rows(_flat(rows.embedding)),
        instruction=unit_rows(instruction),
        identity=jnp.where(valid, identity, memory_bank.EMPTY),
        dataset=_join([batch[g]["dataset"] for g in groups]),
        task=_join([batch[g]["task"] for g in groups]),
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
    anchor = jax.tree.map(lambda x: _flat(x.reshape(blocks, per_block, *x.shape[1:])[:, :plain]), entries)
    own_row = (jnp.arange(blocks)[:, None] * per_block + jnp.arange(plain)[None, :]).reshape(-1)
    valid = _join([batch[g]["valid"] for g in groups])
    embedding = _flat(jnp.concatenate([rows.person[:, :plain], rows.guided[:, :plain]], axis=-1))
    # Anchors go to the entries, never entries to the anchors: [A, 2D] is moved, the bank stays.
    embedding, anchor = jax.tree.map(sharding.constrain_whole, (embedding, anchor))
    overlap = np.zeros((len(options.data_set_weight),) * 2, bool)
    for one, other in o.known_overlap:
        overlap[one, other] = overlap[other, one] = True
    captions = tuple(spec.id for spec in options.tasks if not spec.has_query_image)
    soft_on = o.soft_weight > 0
    hard, soft, aux = memory_bank_loss(
        embedding, anchor, own_row.astype(jnp.int32), valid, entries, memory_bank.entries(bank),
        Rules(jnp.asarray(overlap), captions, o.task_negatives),
        temperature=o.temperature, soft=soft_on,
    )  # fmt: skip
    soft_share = o.soft_weight * memory_bank.full_share(bank, o.soft_ramp_steps)
    ramp = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(o.ramp_steps, 1), 1.0)
    per_row = hard + soft_share.astype(hard.dtype) * soft
    weight = _row_weights(anchor.dataset, valid, options).astype(hard.dtype)
    measured = {
        "bank_hard_loss": hard,
        "bank_dropped": aux.dropped.astype(hard.dtype),
        "bank_positives": aux.positives,
        "bank_negatives": aux.negatives,
    }
    if soft_on:
        measured |= {"bank_soft_loss": soft, "bank_same_identity_mass": aux.same_identity_mass}
    metrics = _per_task(measured, anchor.task, valid, [t for t in options.tasks if t.group in groups])
    filled = jnp.mean((bank.identity >= 0).astype(jnp.float32))
    return o.weight * ramp.astype(hard.dtype) * jnp.sum(weight * per_row), {**metrics, "bank_filled": filled}


def caption_loss(rows: CaptionRows, group: Mapping[str, Array], options: LossOptions) -> tuple[Array, Metrics]:
    """In-batch image-text contrastive loss of the caption rows (method section 6), weighted by data set."""
    identity, dataset, valid = _join([group["identity"]]), _join([group["dataset"]]), _join([group["valid"]])
    temperature = clip_temperature(rows.temperature)
    per_row, aux = contrastive_loss(_flat(rows.image), _flat(rows.text), identity, valid, temperature)
    weight = _row_weights(dataset, valid, options).astype(per_row.dtype)
    measured = {
        "contrastive_loss": per_row,
        "retrieval_accuracy": (aux.text_to_image_correct).astype(per_row.dtype),
        "loss": options.contrastive_weight * per_row,
    }
    metrics = _per_task(measured, _join([group["task"]]), valid, [t for t in options.tasks if t.group == "caption"])
    return options.contrastive_weight * jnp.sum(weight * per_row), {**metrics, "temperature": temperature}


def distance_unit(features: Array, dataset: Array, valid: Array, options: LossOptions) -> Array:
    """f32[data sets]: what the triplet losses divide each data set's features by."""
    sets = len(options.data_set_weight)
    if options.triplet_unit == "feature":
        return jnp.ones((sets,), features.dtype)
    return group_spread(features, dataset, valid, sets)


def _in_units(features: Array, dataset: Array, unit: Array) -> Array:
    return features / jnp.take(unit, dataset, mode="clip")[:, None]


def _flat(x: Array) -> Array:
    """[R, b, D] -> [R*b, D]."""
    return x.reshape(-1, *x.shape[2:])


def _join(parts: list[Array]) -> Array:
    """Fields [R, b_g, ...] of the groups -> [R*B, ...] in row order."""
    return _flat(jnp.concatenate(parts, axis=1))


def _row_weights(dataset: Array, valid: Array, options: LossOptions) -> Array:
    """f32[B]: weight of each row, so that a weighted sum is sum_d w_d * mean over rows of d / sum_d w_d."""
    weights = jnp.asarray(options.data_set_weight, jnp.float32)
    member = (dataset[:, None] == jnp.arange(len(options.data_set_weight))[None]) & valid[:, None]
    rows = jnp.maximum(jnp.sum(member, axis=0).astype(jnp.float32), 1.0)
    share = weights / (rows * jnp.sum(weights))
    return jnp.sum(jnp.where(member, share[None], 0.0), axis=1)


def _per_task(measured: Metrics, task: Array, valid: Array, tasks: list[TaskSpec]) -> Metrics:
    """Mean over the valid rows of each task, as `task/name`."""
    metrics = {}
    for spec in tasks:
        member = (task == spec.id) & valid
        rows = jnp.maximum(jnp.sum(member), 1)
        for key, value in measured.items():
            total = jnp.sum(jnp.where(member, value, jnp.zeros((), value.dtype)))
            metrics[f"{spec.name}/{key}"] = total / rows.astype(value.dtype)
    return metrics
