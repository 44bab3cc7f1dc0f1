"""One training step: the sum of the objectives, its gradient, the update. Only features [B, D] cross devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from irm_jax.models.irm import IRM
from irm_jax.objectives import lanes
from irm_jax.objectives.base import Batch, KeyRequest, LossInputs, Metrics, Objective, Prepared
from irm_jax.objectives.rows import whole_columns
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.training import momentum
from irm_jax.training.optimizer import without_gradient
from irm_jax.training.state import TrainState

Array = jax.Array
MOVED = ("batch_stats", "instruction_mean")
"""Fields of the state that a forward pass moves on, from one accumulated batch to the next."""


@jax.tree_util.register_pytree_node_class
class StepMetrics(Mapping[str, Array]):
    """The metrics of a step by name, kept as one array: a host fetches them in one transfer."""

    def __init__(self, names: tuple[str, ...], values: Any) -> None:
        self.names, self.array = names, values

    @classmethod
    def of(cls, metrics: Metrics) -> StepMetrics:
        """Stacks scalars: as float64 if one of them is, else as float32."""
        dtype = jnp.float64 if any(value.dtype == jnp.float64 for value in metrics.values()) else jnp.float32
        return cls(tuple(metrics), jnp.stack([value.astype(dtype) for value in metrics.values()]))

    def on_host(self) -> dict[str, float]:
        """Waits for the step, and fetches the values."""
        return dict(zip(self.names, np.asarray(self.array).tolist(), strict=True))

    def __getitem__(self, name: str) -> Array:
        try:
            return self.array[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def tree_flatten(self) -> tuple[tuple[Any], tuple[str, ...]]:
        return (self.array,), self.names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: tuple[Any]) -> StepMetrics:
        return cls(names, *children)


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step does beside its objectives.

    Attributes:
        momentum_decay: decay of the momentum model per step.
        frozen: pattern of the parameters without a gradient (`LayerRates.frozen`, which also keeps the optimizer from
            moving them).
    """

    momentum_decay: float
    frozen: str = ""


def make_train_step(
    model: IRM,
    optimizer: optax.GradientTransformation,
    objectives: Sequence[Objective],
    mesh: Mesh,
    options: StepOptions,
) -> jax.stages.Wrapped:
    """Returns the jitted `step(state, batch, constant_tokens, key) -> (state, metrics)`; the state is donated.

    Arrays of `batch` may have a leading axis of accumulated batches: each is mined and normalised alone, and their
    gradients are averaged.
    """
    step = _TrainStep(model, optimizer, tuple(objectives), options)

    def in_mesh(state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, StepMetrics]:
        shardings = rules.shardings(state, mesh)
        new, metrics = step(state, batch, constants, key)
        packed = jax.lax.with_sharding_constraint(StepMetrics.of(metrics), mesh_lib.replicated(mesh))
        return jax.lax.with_sharding_constraint(new, shardings), packed

    return jax.jit(in_mesh, donate_argnums=0, compiler_options=mesh_lib.compiler_options(mesh))


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What one batch is computed from: the state before, the batch, the constant sentences and a random key."""

    state: TrainState
    batch: Batch
    constants: Array
    key: Array


@dataclasses.dataclass(frozen=True)
class _TrainStep:
    """The step as a function of one state and one batch, or one batch per accumulated part."""

    model: IRM
    optimizer: optax.GradientTransformation
    objectives: tuple[Objective, ...]
    options: StepOptions

    def __call__(self, state: TrainState, batch: Batch, constants: Array, key: Array) -> tuple[TrainState, Metrics]:
        inputs = _Inputs(state, batch, constants, jax.random.fold_in(key, state.step))
        if next(iter(batch.values()))["identity"].ndim == 2:
            gradients, (moved, metrics, keys) = self.gradients(inputs)
            pushed = [keys]
        else:
            gradients, moved, metrics, pushed = self.accumulated(inputs)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its python scalars and integer counts freely
            updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            # Of the updated parameters: a step that wrecks them shows before they are saved.
            metrics = {
                **metrics,
                "gradient_norm": optax.tree.norm(gradients),
                "parameter_norm": optax.tree.norm(params),
            }
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, **moved)
        return (self.remembered(new, metrics, pushed) if state.momentum_params is not None else new), metrics

    def gradients(self, inputs: _Inputs) -> tuple[Any, tuple[dict[str, Any], Metrics, dict[str, Any]]]:
        """The gradient of one batch -> (gradient, (moved fields, metrics, keys by the field that stores them))."""
        inputs = dataclasses.replace(inputs, batch=whole_columns(inputs.batch))
        batch, prepared = self.prepared(inputs)
        inputs = dataclasses.replace(inputs, batch=batch)
        loss = functools.partial(self.loss, inputs=inputs, prepared=prepared)
        gradient, (moved, metrics) = jax.grad(loss, has_aux=True)(inputs.state.params)
        keys = {o.stored: prepared[o.name].keys for o in self.active(batch) if o.stored is not None}
        return gradient, (moved, metrics, keys)

    def active(self, batch: Batch) -> list[Objective]:
        """The objectives that take rows of this batch."""
        return [objective for objective in self.objectives if any(kind in batch for kind in objective.kinds)]

    def prepared(self, inputs: _Inputs) -> tuple[Batch, dict[str, Prepared]]:
        """The batch as the model is to read it, and what each objective drew or took from the momentum model."""
        state, batch, key = inputs.state, inputs.batch, inputs.key
        prepared, request = {}, KeyRequest()
        for objective in self.active(batch):
            batch, drawn = objective.draw(batch, key)
            prepared[objective.name] = Prepared(draws=drawn)
            request |= objective.key_request
        if request.empty:
            return batch, prepared
        # The heads are there because the model declares them; no key reads them.
        params = {**state.params, **state.momentum_params}
        rows, _ = self.model.apply(
            {"params": params, "batch_stats": state.batch_stats}, batch, inputs.constants, mutable=["batch_stats"],
            method="keys", **dataclasses.asdict(request),
        )  # fmt: skip
        rows = jax.lax.stop_gradient(rows)
        for objective in self.active(batch):
            if not objective.key_request.empty:
                drawn = prepared[objective.name].draws
                batch, prepared[objective.name] = objective.make_keys(batch, rows, drawn, state, key)
        return batch, prepared

    def loss(self, params: Any, inputs: _Inputs, prepared: Mapping[str, Prepared]) -> Any:
        """The sum of the objectives -> (loss, (moved fields, metrics))."""
        state, batch, key = inputs.state, inputs.batch, inputs.key
        params = without_gradient(params, self.options.frozen)
        output, changed = self.model.apply(
            {"params": params, "batch_stats": state.batch_stats}, batch, inputs.constants, train=True,
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip

        def apply(*arrays: Any, method: str, dropout: int) -> Any:
            rngs = {"dropout": jax.random.fold_in(key, dropout)}
            return self.model.apply({"params": params}, *arrays, train=True, rngs=rngs, method=method)

        total = jnp.zeros((), jnp.float32)
        moved = {"batch_stats": changed["batch_stats"], "instruction_mean": state.instruction_mean}
        metrics: Metrics = {}
        for objective in self.active(batch):
            term = objective.loss(LossInputs(output, batch, state, prepared[objective.name], key, apply))
            total = total.astype(term.loss.dtype) + term.loss
            moved |= term.changes
            metrics |= term.metrics
        return total, (moved, {"loss": total, **metrics})

    def accumulated(self, inputs: _Inputs) -> tuple[Any, dict[str, Any], Metrics, list[dict[str, Any]]]:
        """Gradients and metrics averaged over the leading axis, the fields moved by all, and the keys of each batch."""
        count = next(iter(inputs.batch.values()))["identity"].shape[0]

        def one(carry: Any, part: tuple[Array, Batch]) -> tuple[Any, Any]:
            moved, sums = carry
            state = dataclasses.replace(inputs.state, **moved)
            key = jax.random.fold_in(inputs.key, part[0])
            gradient, (moved, metrics, keys) = self.gradients(_Inputs(state, part[1], inputs.constants, key))
            return (moved, jax.tree.map(jnp.add, sums, (metrics, gradient))), keys

        first = jax.tree.map(lambda x: x[0], inputs.batch)
        shapes = jax.eval_shape(
            lambda batch: self.gradients(dataclasses.replace(inputs, batch=batch)), first
        )  # of one batch
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1][1], shapes[0]))
        start = ({name: getattr(inputs.state, name) for name in MOVED}, zeros)
        (moved, sums), keys = jax.lax.scan(one, start, (jnp.arange(count), inputs.batch))
        metrics, gradient = jax.tree.map(lambda x: x / count, sums)
        return gradient, moved, metrics, [jax.tree.map(lambda x, i=i: x[i], keys) for i in range(count)]

    def remembered(self, state: TrainState, metrics: Metrics, pushed: list[dict[str, Any]]) -> TrainState:
        """The updated state with its momentum model moved and the keys of the step's batches in their lanes."""
        average = momentum.update(state.momentum_params, state.params, self.options.momentum_decay)
        read = metrics["loss"] + metrics["gradient_norm"].astype(metrics["loss"].dtype)  # of all that read the lanes
        changed: dict[str, Any] = {}
        for field in pushed[0]:
            bank = getattr(state, field)
            if bank is not None:
                for keys in pushed:
                    bank = lanes.push(bank, keys[field], read)
                changed[field] = bank
        return dataclasses.replace(state, momentum_params=average, **changed)
