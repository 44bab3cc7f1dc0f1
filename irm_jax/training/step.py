"""One training step: forward, losses, update. Only [B, D] features cross devices between forward and losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from irm_jax.losses.adaptive_triplet import adaptive_triplet_loss
from irm_jax.losses.composed_triplet import composed_triplet_loss
from irm_jax.losses.geometry import group_spread
from irm_jax.losses.identity import identity_loss
from irm_jax.losses.instruction_similarity import InstructionMean, current_mean, similarity, update_mean
from irm_jax.models.irm import EDITED_GROUPS, IRM, EditedRows
from irm_jax.objectives import captions as text_to_image
from irm_jax.objectives import lanes
from irm_jax.objectives.captions import Draws
from irm_jax.objectives.lanes import CaptionKeys, Entries
from irm_jax.objectives.memory_bank import bank_loss, batch_entries
from irm_jax.objectives.options import LossOptions
from irm_jax.objectives.rows import Metrics, flat, join, per_task, row_weights, whole_columns
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.training import momentum
from irm_jax.training.optimizer import without_gradient
from irm_jax.training.state import KINDS, TrainState

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
# Random numbers of a step beside the encoders' dropout, one key each.
FUSION_DROPOUT, NEGATIVES, WORDS, REPLACEMENTS = 1 << 20, (1 << 20) + 1, (1 << 20) + 2, (1 << 20) + 3


@struct.dataclass
class Keys:
    """What the momentum model makes of a batch: `bank` and `captions` are read by the losses, then pushed."""

    bank: Entries | None
    captions: CaptionKeys | None


def make_train_step(
    model: IRM,
    optimizer: optax.GradientTransformation,
    options: LossOptions,
    head_members: Array,
    mesh: Mesh,
    *,
    frozen: str = "",
) -> jax.stages.Wrapped:
    """Returns the jitted `step(state, batch, constant_tokens, key) -> (state, metrics)`; the state is donated.

    `head_members` bool[data sets, identities]: the identities among which a row is classified. `frozen`: pattern of the
    parameters without a gradient (`Recipe.frozen`, which also keeps the optimizer from moving them). Arrays of `batch`
    may carry a leading axis of accumulated batches: each is mined and normalised alone, their gradients are averaged.
    """

    def loss_of(
        params: Any, state: TrainState, batch: Batch, constants: Array, key: Array, keys: Keys, drawn: Draws | None
    ) -> Any:
        params = without_gradient(params, frozen)
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
        if keys.bank is not None:
            assert output.edited is not None  # config_check
            assert state.memory_bank is not None
            loss, part = bank_loss(output.edited, batch, keys.bank, state.memory_bank, state.step, options)
            total, metrics = total + loss, {**metrics, **part}
        if output.caption is not None:

            def fuse(*arrays: Any) -> Any:
                rngs = {"dropout": jax.random.fold_in(key, FUSION_DROPOUT)}
                return model.apply({"params": params}, *arrays, train=True, rngs=rngs, method="fuse_captions")

            loss, part = text_to_image.caption_loss(
                fuse, output.caption, batch["caption"], drawn, keys.captions, state.caption_queue, state.step,
                jax.random.fold_in(key, NEGATIVES), options,
            )  # fmt: skip
            total, metrics = total.astype(loss.dtype) + loss, {**metrics, **part}
        return total, (changed["batch_stats"], mean, {"loss": total, **metrics})

    def momentum_keys(
        state: TrainState, batch: Batch, constants: Array, key: Array
    ) -> tuple[Keys, Batch, Draws | None]:
        """The momentum model's keys, the batch with what the model is to read of its captions, and what was drawn."""
        captions = "caption" in batch
        drawn = None
        if captions:
            batch, drawn = text_to_image.hide_words(batch, jax.random.fold_in(key, WORDS), options.captions)
        of_captions = captions and options.captions.needs_momentum
        if options.bank is None and not of_captions:
            return Keys(None, None), batch, drawn
        # The heads are there because the model declares them; no key reads them.
        params = {**state.params, **state.momentum_params}
        rows, _ = model.apply(
            {"params": params, "batch_stats": state.batch_stats}, batch, constants, mutable=["batch_stats"],
            method="keys", embeddings=options.bank is not None, captions=of_captions, contrast=options.captions.queue,
        )  # fmt: skip
        rows = jax.lax.stop_gradient(rows)
        entries = batch_entries(rows, state.instruction_mean, batch, options) if options.bank is not None else None
        caption_keys = None
        if rows.caption is not None:
            assert drawn is not None
            if rows.caption.projections is not None:
                image, text = rows.caption.projections
                caption_keys = text_to_image.caption_keys(image, text, batch["caption"])
            replace_key = jax.random.fold_in(key, REPLACEMENTS)
            batch, drawn = text_to_image.replace_words(batch, drawn, rows.caption, replace_key, options.captions)
        return Keys(entries, caption_keys), batch, drawn

    def gradients(state: TrainState, batch: Batch, constants: Array, key: Array) -> Any:
        """-> ((loss, (batch_stats, mean, metrics, keys)), gradient): of one batch, its keys ready to be pushed."""
        keys, batch, drawn = momentum_keys(state, whole_columns(batch), constants, key)
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state, batch, constants, key, keys, drawn
        )
        return (loss, (*rest, keys)), grads

    def step(state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        if next(iter(batch.values()))["identity"].ndim == 2:
            (_, (batch_stats, mean, metrics, keys)), grads = gradients(state, batch, constants, key)
            pushed = [keys]
        else:
            batch_stats, mean, metrics, grads, pushed = _accumulate(gradients, state, batch, constants, key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its python scalars and integer counts freely
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
        new = TrainState(state.step + 1, params, batch_stats, mean, opt_state)
        if state.momentum_params is not None:
            average = momentum.update(state.momentum_params, params, options.momentum)
            bank, queue = state.memory_bank, state.caption_queue
            read = metrics["loss"] + metrics["gradient_norm"].astype(metrics["loss"].dtype)  # all that read the banks
            for keys in pushed:
                bank = lanes.push(bank, keys.bank, read) if bank is not None else None
                queue = lanes.push(queue, keys.captions, read) if queue is not None else None
            new = dataclasses.replace(new, momentum_params=average, memory_bank=bank, caption_queue=queue)
        return new, metrics

    def in_mesh(state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, Metrics]:
        shardings = rules.shardings(state, mesh)
        new, metrics = step(state, batch, constants, key)
        return jax.lax.with_sharding_constraint(new, shardings), metrics

    return jax.jit(in_mesh, donate_argnums=0, compiler_options=mesh_lib.compiler_options(mesh))


def _accumulate(gradients: Callable[..., Any], state: TrainState, batch: Batch, constants: Array, key: Array) -> Any:
    """Averages gradients and metrics over the leading axis; statistics pass from one batch to the next.

    Returns (batch_stats, mean, metrics, gradients, [keys of each batch])."""
    count = next(iter(batch.values()))["identity"].shape[0]

    def one(carry: Any, inputs: Any) -> tuple[Any, Any]:
        batch_stats, mean, sums = carry
        index, part = inputs
        here = dataclasses.replace(state, batch_stats=batch_stats, instruction_mean=mean)
        (_, (batch_stats, mean, metrics, keys)), grads = gradients(
            here, part, constants, jax.random.fold_in(key, index)
        )
        return (batch_stats, mean, jax.tree.map(jnp.add, sums, (metrics, grads))), keys

    first = jax.tree.map(lambda x: x[0], batch)
    (_, (_, _, metrics, _)), grads = jax.eval_shape(gradients, state, first, constants, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, grads))
    start = (state.batch_stats, state.instruction_mean, zeros)
    (batch_stats, mean, sums), keys = jax.lax.scan(one, start, (jnp.arange(count), batch))
    metrics, grads = jax.tree.map(lambda x: x / count, sums)
    return batch_stats, mean, metrics, grads, [jax.tree.map(lambda x, i=i: x[i], keys) for i in range(count)]


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
        name: join([batch[g][name] for g in groups])
        for name in ("identity", "dataset", "task", "attributes", "valid", "instruction_key")
    }
    # A row whose instruction is a constant sentence is of kind text, whatever its group.
    kind = join(
        [jnp.where((batch[g]["instruction"] >= 0) & (g == "visual"), KINDS.index("visual"), 0) for g in groups]
    ).astype(jnp.int32)
    plain = rows.cls.shape[1]
    cls, cls_neck = flat(rows.cls), flat(rows.cls_neck)
    person, guided = flat(rows.person[:, :plain]), flat(rows.guided[:, :plain])
    instruction = flat(rows.instruction[:, :plain])
    identity, dataset, valid = fields["identity"], fields["dataset"], fields["valid"]

    # Constant sentences would draw the mean of texts to themselves; their similarity (1) needs no centring.
    own = join([batch[g]["instruction"] for g in groups]) >= 0
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
    weight = row_weights(dataset, valid, options.data_set_weight, options.total_weight)
    per_row = identity_part + options.alpha * triplet_part
    loss = jnp.sum(weight.astype(per_row.dtype) * per_row)
    measured = {
        "identity_loss": identity_part,
        "triplet_loss": triplet_part,
        "identity_accuracy": correct["person"].astype(identity_part.dtype),
        "dropped_anchors": aux["person"].dropped.astype(identity_part.dtype),
        "loss": per_row,
    }
    present = [t for t in options.tasks if t.kind in groups]
    metrics = per_task(measured, fields["task"], valid, present)
    kept = valid & ~aux["person"].dropped
    anchors = {"mean_beta": aux["person"].beta_1, "active_triplets": aux["person"].active.astype(per_row.dtype)}
    metrics |= per_task(anchors, fields["task"], kept, present)
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
        return join(picks)

    identity, dataset, task = of_row("identity"), of_row("dataset"), of_row("task")
    valid = join([batch[g]["composed_valid"] for g in composed])
    wanted = join([batch[g]["composed_attributes"] for g in composed])
    allowed = jnp.take(head_members, dataset, axis=0)
    ce, triplet, aux = [], [], []
    for name, feature in (("person", rows.person), ("guided", rows.guided)):
        anchor, candidates = flat(feature[:, plain:]), flat(feature[:, :plain])
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
    weight = row_weights(dataset, valid, options.data_set_weight, options.total_weight).astype(per_row.dtype)
    measured = {
        "composed_loss": per_row,
        "composed_active": aux[0].active.astype(per_row.dtype),
        "composed_dropped": aux[0].dropped.astype(per_row.dtype),
    }
    metrics = per_task(measured, task, valid, [t for t in options.tasks if t.name in options.composed_tasks])
    return options.composed_weight * jnp.sum(weight * per_row), metrics


def distance_unit(features: Array, dataset: Array, valid: Array, options: LossOptions) -> Array:
    """f32[data sets]: what the triplet losses divide each data set's features by."""
    sets = len(options.data_set_weight)
    if options.triplet_unit == "feature":
        return jnp.ones((sets,), features.dtype)
    return group_spread(features, dataset, valid, sets)


def _in_units(features: Array, dataset: Array, unit: Array) -> Array:
    return features / jnp.take(unit, dataset, mode="clip")[:, None]
