"""AdamW with the paper's schedule (linear warm-up times cosine decay), decay by path pattern, optional clipping."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irm_jax.config.layer_rates import Recipe
from irm_jax.parallel.rules import path_string

WARMUP_START = 0.01
NO_RECIPE = Recipe()
_STACKED = "/layers/block/"


def schedule(learning_rate: float, steps: int, warmup_steps: int) -> Callable[[jax.Array], jax.Array]:
    """lr * w(t) * (1 + cos(pi * t / T)) / 2, w linear from 0.01 to 1 over `warmup_steps` (released recipe)."""

    def rate(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step).astype(jnp.float32)
        warm = jnp.minimum(1.0, WARMUP_START + (1.0 - WARMUP_START) * t / max(warmup_steps, 1))
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(t / max(steps, 1), 1.0)))

    return rate


def decay_mask(params: Any, no_decay: str) -> Any:
    """True where weight decay applies: every parameter whose path does not match the pattern ('' = decay all)."""
    pattern = re.compile(no_decay) if no_decay else None
    return jax.tree_util.tree_map_with_path(
        lambda path, _: pattern is None or pattern.search(path_string(path)) is None, params
    )


def make_optimizer(
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int,
    weight_decay: float,
    no_decay: str,
    beta1: float,
    beta2: float,
    clip_norm: float,
    recipe: Recipe = NO_RECIPE,
) -> optax.GradientTransformation:
    """AdamW(beta1, beta2) on the schedule; `clip_norm` 0 leaves gradients unclipped (the released recipe).

    `recipe`: parameters that stand still or learn slower; their gradients are cleared before clipping, and their steps,
    weight decay included, are scaled.
    """
    adamw = optax.adamw(
        schedule(learning_rate, steps, warmup_steps), b1=beta1, b2=beta2, weight_decay=weight_decay,
        mask=lambda params: decay_mask(params, no_decay),
    )  # fmt: skip
    # A chain either way: one shape of state, so that clipping or a recipe can be switched on when a run is resumed.
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    return optax.chain(scaled(clip, Recipe(frozen=recipe.frozen), gradients=True), scaled(adamw, recipe))


def without_gradient(params: Any, frozen: str) -> Any:
    """The parameters, those that the pattern freezes cut off from the gradient: their backward pass is not computed.

    Layers stacked by `scan_layers` are one array, cut off where all of them are frozen.
    """
    if not frozen:
        return params

    def cut(path: Any, leaf: Any) -> Any:
        stands = all(re.search(frozen, name) for name in _layers(path_string(path), leaf))
        return jax.lax.stop_gradient(leaf) if stands else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


def factors(params: Any, recipe: Recipe) -> Any:
    """A tree like `params` of f32 factors: a number each, or for layers stacked by `scan_layers` one a layer."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [(path_string(path), leaf) for path, leaf in leaves]
    layers = [_layers(path, leaf) for path, leaf in named]
    found = iter(recipe.factors([name for names in layers for name in names]))
    trees = []
    for names, (path, leaf) in zip(layers, named, strict=True):
        own = np.array([next(found) for _ in names], np.float32)
        trees.append(own.reshape((len(own),) + (1,) * (leaf.ndim - 1)) if _STACKED in path else own[0])
    return jax.tree_util.tree_unflatten(structure, trees)


def scaled(
    inner: optax.GradientTransformation, recipe: Recipe, *, gradients: bool = False
) -> optax.GradientTransformation:
    """`inner` with its updates, or the gradients that it is given, times the recipe's factors; its state is `inner`'s.

    Raises RecipeError at its start for a pattern that fits no parameter.
    """
    if recipe == NO_RECIPE:
        return inner

    def times_factors(tree: Any) -> Any:
        return jax.tree.map(lambda x, f: x * f.astype(x.dtype), tree, factors(tree, recipe))

    def init(params: Any) -> Any:
        factors(params, recipe)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if gradients:
            return inner.update(times_factors(updates), state, params)
        updates, state = inner.update(updates, state, params)
        return times_factors(updates), state

    return optax.GradientTransformation(init, update)


def _layers(path: str, leaf: Any) -> list[str]:
    """The paths that stand behind one leaf: each layer's where layers are stacked on the first axis."""
    if _STACKED not in path:
        return [path]
    return [path.replace(_STACKED, f"/layer_{number}/") for number in range(leaf.shape[0])]
