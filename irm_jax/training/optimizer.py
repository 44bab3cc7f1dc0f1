"""The optimizer of a run: any optax optimizer by name, the paper's schedule, weight decay by path, layer rates.

An optimizer is `chain(clipping, optimizer)` in every case: one form of state, so that clipping or layer rates can be
switched on when a run is resumed.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from irm_jax.checkpoint.averages import averaged
from irm_jax.config.layer_rates import LayerRates, LayerRatesError
from irm_jax.errors import ConfigError
from irm_jax.parallel.rules import path_string
from irm_jax.training.muon import muon

if TYPE_CHECKING:
    from ml_collections import ConfigDict

WARMUP_START = 0.01
PLAIN_RATES = LayerRates()
_STACKED = "/layers/block/"
Schedule = Callable[[jax.Array], jax.Array]
OWN_ARGUMENTS = ("learning_rate", "weight_decay", "weight_decay_rate", "mask", "weight_decay_mask")
"""Arguments of optax optimizers that other keys of `config.optimizer` set."""


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Settings of `config.optimizer`, see there; `steps` is `config.train.steps`.

    `extra` holds further keyword arguments of the optax function.
    """

    learning_rate: float
    steps: int
    warmup_steps: int
    weight_decay: float = 0.0
    no_decay: str = ""
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.0
    rates: LayerRates = PLAIN_RATES
    name: str = "adamw"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(cls, config: ConfigDict) -> OptimizerOptions:
        """The options of a run. Keys that a configuration saved by an older version lacks have their defaults."""
        o = config.optimizer
        return cls(
            learning_rate=o.learning_rate, steps=config.train.steps, warmup_steps=o.warmup_steps,
            weight_decay=o.weight_decay, no_decay=o.no_decay, beta1=o.beta1, beta2=o.beta2, clip_norm=o.clip_norm,
            rates=LayerRates(o.frozen, tuple(o.rate_multipliers), o.layer_decay),
            name=o.get("name", "adamw"), extra=dict(o.get("options", {})),
        )  # fmt: skip

    def decays(self, params: Any) -> Any:
        """True where weight decay applies, see `decay_mask`."""
        return decay_mask(params, self.no_decay)


def schedule(learning_rate: float, steps: int, warmup_steps: int) -> Schedule:
    """lr * w(t) * (1 + cos(pi * t / T)) / 2, w linear from 0.01 to 1 over `warmup_steps` (the released recipe)."""

    def rate(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step).astype(jnp.float32)
        warm = jnp.minimum(1.0, WARMUP_START + (1.0 - WARMUP_START) * t / max(warmup_steps, 1))
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(t / max(steps, 1), 1.0)))

    return rate


def warmup_alone(learning_rate: float, warmup_steps: int) -> Schedule:
    """lr * w(t), w as in `schedule`: what `schedule_free` takes, whose averages stand for the decay."""

    def rate(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step).astype(jnp.float32)
        return learning_rate * jnp.minimum(1.0, WARMUP_START + (1.0 - WARMUP_START) * t / max(warmup_steps, 1))

    return rate


def decay_mask(params: Any, no_decay: str) -> Any:
    """True where weight decay applies: for every parameter whose path does not match the pattern ('' = decay all)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: not (no_decay and _fits_whole(no_decay, path, leaf)), params
    )


def make_optimizer(options: OptimizerOptions) -> optax.GradientTransformation:
    """Returns the optimizer that `options.name` names in optax or optax.contrib, on the schedule.

    Gradients of frozen parameters are cleared before clipping. Steps, weight decay included, are scaled by the rates'
    factors. `clip_norm` 0 leaves gradients as they are (the released recipe).

    Raises:
        ConfigError: for a name that optax does not have, or an option that it does not take.
    """
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm > 0 else optax.identity()
    frozen = scaled(clip, LayerRates(frozen=options.rates.frozen), gradients=True)
    if options.name == "schedule_free":  # y is computed from z and x anew, rounded: frozen parameters would drift
        chosen = scaled(_schedule_free(options), LayerRates(frozen=options.rates.frozen))
    else:
        chosen = scaled(without_moments(_named(options), options.rates.frozen), options.rates)
    return _with_checked_decay(optax.chain(frozen, chosen), options.no_decay)


def _with_checked_decay(inner: optax.GradientTransformation, no_decay: str) -> optax.GradientTransformation:
    """Returns `inner`; its `init` raises LayerRatesError if the pattern fits no parameter, or a part of a stack."""
    if not no_decay:
        return inner

    def init(params: Any) -> Any:
        for path, factor in jax.tree_util.tree_leaves_with_path(factors(params, LayerRates(frozen=no_decay))):
            if len(np.unique(factor)) > 1:
                raise LayerRatesError(
                    f"config.optimizer.no_decay = {no_decay!r} fits some layers of {path_string(path)}, which stacks "
                    "all of them: write a pattern without their numbers, or set config.model.scan_layers=False"
                )
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def free_states(opt_state: Any) -> list[contrib.ScheduleFreeState]:
    """The states of `schedule_free` within that of an optimizer: one, or none."""
    is_free = lambda node: isinstance(node, contrib.ScheduleFreeState)  # noqa: E731
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_free) if is_free(node)]


def evaluation_params(params: Any, opt_state: Any) -> Any:
    """The parameters to evaluate and export: the averages that `schedule_free` keeps, else `params` themselves."""
    found = free_states(opt_state)
    return averaged(params, found[0].z, found[0].b1) if found else params


def _named(options: OptimizerOptions) -> optax.GradientTransformation:
    """An optax optimizer with decoupled weight decay: by its own arguments if it takes a mask, else after its step."""
    rate = schedule(options.learning_rate, options.steps, options.warmup_steps)
    make: Any = getattr(optax, options.name, None) or getattr(contrib, options.name, None)
    if options.name == "muon":
        make = muon
    taken = inspect.signature(make).parameters if inspect.isroutine(make) else {}
    if "learning_rate" not in taken:
        raise ConfigError(
            f"config.optimizer.name = {options.name!r} is no optimizer of optax with a learning rate; set one such as "
            "adamw, lion, muon, adafactor or schedule_free"
        )
    _check_extra(options, taken)
    params = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    try:
        found = _made(make, taken, options, rate)
        with jax.numpy_dtype_promotion("standard"):  # as the training step runs optax
            jax.eval_shape(found.update, params, jax.eval_shape(found.init, params), params)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"config.optimizer.name = {options.name!r}, options {dict(options.extra)}: optax's function does not work "
            f"with a schedule of the learning rate and gradients alone ({error}); choose another optimizer or other "
            "options"
        ) from error
    return found


def _made(
    make: Any, taken: Mapping[str, Any], options: OptimizerOptions, rate: Schedule
) -> optax.GradientTransformation:  # fmt: skip
    """What the optax function `make`, which takes the arguments `taken`, makes of the options."""
    given: dict[str, Any] = {"learning_rate": rate}
    if options.name == "adamw":
        given |= {"b1": options.beta1, "b2": options.beta2}
    if options.name == "muon":
        given |= {"adam_b1": options.beta1, "adam_b2": options.beta2}
    if {"weight_decay", "mask"} <= taken.keys():
        return make(**{**given, "weight_decay": options.weight_decay, "mask": options.decays, **options.extra})
    if "weight_decay" in taken:
        given["weight_decay"] = 0.0
    inner = make(**{**given, **options.extra})
    if not options.weight_decay:
        return inner
    after = optax.add_decayed_weights(lambda step: -options.weight_decay * rate(step), options.decays)
    return optax.chain(inner, after)


def _schedule_free(options: OptimizerOptions) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al., arXiv:2405.15682), whose evaluated parameters are `evaluation_params`.

    The factors of the rates scale the steps of the base optimizer: scaled afterwards, the averages would be others.
    """
    _check_extra(options, inspect.signature(contrib.schedule_free_adamw).parameters, ("warmup_steps", "b1", "b2"))
    if options.beta1 <= 0:
        raise ConfigError("config.optimizer.beta1 = 0, but schedule_free needs a positive one; set 0.9")
    extra = dict(options.extra)
    rate = warmup_alone(options.learning_rate, options.warmup_steps)
    base = optax.chain(
        optax.scale_by_rms(decay=options.beta2, eps=extra.pop("eps", 1e-8), eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(options.weight_decay, options.decays),
        optax.scale_by_learning_rate(rate),
    )
    return contrib.schedule_free(scaled(base, options.rates), learning_rate=rate, b1=options.beta1, **extra)


def _check_extra(options: OptimizerOptions, taken: Mapping[str, Any], also: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for `config.optimizer.options` that the optax function does not take."""
    own = {*OWN_ARGUMENTS, *also}
    for name in options.extra:
        if name in own or name not in taken:
            raise ConfigError(
                f"config.optimizer.options.{name}: optax's {options.name} takes no such option here; it takes "
                f"{', '.join(key for key in taken if key not in own)}"
            )


def without_gradient(params: Any, frozen: str) -> Any:
    """Returns the parameters with the frozen ones cut off from the gradient, so that no backward pass is computed.

    Layers stacked by `scan_layers` are one array, which is cut off where all of them are frozen.
    """
    if not frozen:
        return params

    def cut(path: Any, leaf: Any) -> Any:
        return jax.lax.stop_gradient(leaf) if _fits_whole(frozen, path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


def _fits_whole(pattern: str, path: Any, leaf: Any) -> bool:
    """Whether a pattern fits a leaf, with all layers that it stacks."""
    return all(re.search(pattern, name) for name in _layers(path_string(path), leaf))


def thawed(params: Any, before: str, now: str) -> list[str]:
    """The paths of parameters that the pattern `before` froze and `now` does not, stacked layers one by one."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [name for path, leaf in leaves for name in _layers(path_string(path), leaf)]
    return [name for name in names if before and re.search(before, name) and not (now and re.search(now, name))]


def without_moments(inner: optax.GradientTransformation, frozen: str) -> optax.GradientTransformation:
    """Returns `inner` with one zero in the place of every frozen parameter, whose update is 0.

    Its state has the same paths as without frozen parameters, with one number for a moment, so that either is read back
    when the pattern changes (`state.with_saved_moments`).
    """
    if not frozen:
        return inner

    def pruned(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros((1,) * x.ndim, x.dtype) if _fits_whole(frozen, path, x) else x, tree
        )

    def init(params: Any) -> Any:
        return inner.init(pruned(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        small = None if params is None else pruned(params)
        found, state = inner.update(pruned(updates), state, small)
        return jax.tree.map(lambda f, u: f if f.shape == u.shape else jnp.zeros_like(u), found, updates), state

    return optax.GradientTransformation(init, update)


def factors(params: Any, rates: LayerRates) -> Any:
    """Returns a tree like `params` of float32 factors: one per leaf, or per layer of those that are stacked."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [(path_string(path), leaf) for path, leaf in leaves]
    layers = [_layers(path, leaf) for path, leaf in named]
    found = iter(rates.factors([name for names in layers for name in names]))
    trees = []
    for names, (path, leaf) in zip(layers, named, strict=True):
        own = np.array([next(found) for _ in names], np.float32)
        trees.append(own.reshape((len(own),) + (1,) * (leaf.ndim - 1)) if _STACKED in path else own[0])
    return jax.tree_util.tree_unflatten(structure, trees)


def scaled(
    inner: optax.GradientTransformation, rates: LayerRates, *, gradients: bool = False
) -> optax.GradientTransformation:
    """Returns `inner` with its updates, or the gradients that it is given, times the factors of the rates.

    The state is that of `inner`. Its `init` raises LayerRatesError for a pattern that fits no parameter.
    """
    if rates == PLAIN_RATES:
        return inner

    def times_factors(tree: Any) -> Any:
        return jax.tree.map(lambda x, f: x * f.astype(x.dtype), tree, factors(tree, rates))

    def init(params: Any) -> Any:
        factors(params, rates)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if gradients:
            return inner.update(times_factors(updates), state, params)
        updates, state = inner.update(updates, state, params)
        return times_factors(updates), state

    return optax.GradientTransformation(init, update)


def _layers(path: str, leaf: Any) -> list[str]:
    """The paths of one leaf: one per layer where layers are stacked on the first axis."""
    if _STACKED not in path:
        return [path]
    return [path.replace(_STACKED, f"/layer_{number}/") for number in range(leaf.shape[0])]
