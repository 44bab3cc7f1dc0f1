"""AdamW with the paper's schedule (linear warm-up times cosine decay), decay by path pattern, optional clipping."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from irm_jax.sharding import path_string

WARMUP_START = 0.01


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
) -> optax.GradientTransformation:
    """AdamW(beta1, beta2) on the schedule; `clip_norm` 0 leaves gradients unclipped (the released recipe)."""
    adamw = optax.adamw(
        schedule(learning_rate, steps, warmup_steps), b1=beta1, b2=beta2, weight_decay=weight_decay,
        mask=lambda params: decay_mask(params, no_decay),
    )  # fmt: skip
    # A chain either way: one shape of state, so that clipping can be switched on when a run is resumed.
    return optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(), adamw)
