"""Muon with the matrices of one shape orthogonalised together, as one stack.

optax's `contrib.muon` goes through the kernels one by one: five iterations of three small products each. A stack takes
as many products as one kernel. State and updates are those of `contrib.muon`. The iterations are done by
`contrib.scale_by_muon`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from irm_jax.parallel.rules import path_string

Schedule = Callable[[jax.Array], jax.Array]
MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    (r"attention/query_key_value/kernel$", (-4,), (-2, -1)),  # [D, 3, heads, D/heads]: three matrices
    (r"cross_attention/(query|key|value)/kernel$", (-3,), (-2, -1)),
    (r"attention/output/kernel$", (-3, -2), (-1,)),
    (r"mlp/(expand|contract)/kernel$", (-2,), (-1,)),
    (r"patch_embedding/\w+/kernel$", (-4, -3, -2), (-1,)),  # a convolution is the matrix of its patches
    (r"(pooled_class|encoder_projection|image_projection|text_projection)/kernel$", (-2,), (-1,)),
)
"""Path patterns of the matrices that muon orthogonalises, with their input and output axes counted from the last. All
other axes, such as layers stacked by `scan_layers`, hold matrices of their own."""

STACK = 2**24
"""Numbers in a stack of several parameters, 64 MiB: what the iterations hold beside it is a few times as large."""


def muon(
    learning_rate: Schedule,
    *,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    beta: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any = None,
    nesterov: bool = True,
    consistent_rms: float = 0.2,
    ns_steps: int = 5,
    ns_coeffs: Any = (3.4445, -4.775, 2.0315),
    preconditioning: str = "frobenius",
) -> optax.GradientTransformation:
    """Muon for `MATRICES`, AdamW for all other parameters: embeddings, heads and vectors.

    The arguments are those of `optax.contrib.muon`. `consistent_rms`: updates of a matrix are as large as AdamW's, so
    that both parts go with one learning rate (arXiv:2502.16982).
    """
    iterations: dict[str, Any] = {
        "ns_coeffs": ns_coeffs, "ns_steps": ns_steps, "eps": eps, "preconditioning": preconditioning,
    }  # fmt: skip
    return optax.partition(
        {
            "muon": optax.chain(
                _scale_by_muon(iterations, beta, mu_dtype, nesterov),
                optax.stateless(lambda updates, _: _scaled(updates, consistent_rms)),
                optax.identity(),  # `contrib.muon` has its weight decay here; the state keeps its place
                optax.scale_by_learning_rate(learning_rate),
            ),
            "adam": optax.adamw(
                learning_rate, adam_b1, adam_b2, eps, mu_dtype=mu_dtype, weight_decay=0.0, nesterov=nesterov
            ),
        },
        _labels,
    )  # fmt: skip


def dimensions(params: Any) -> Any:
    """The tree of `contrib.MuonDimensionNumbers` of the matrices; None for what is left to AdamW."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _axes(path), params)


def _axes(path: Any) -> contrib.MuonDimensionNumbers | None:
    name = path_string(path)
    found = (contrib.MuonDimensionNumbers(*sides) for pattern, *sides in MATRICES if re.search(pattern, name))
    return next(found, None)


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if _axes(path) else "adam", params)


def _scale_by_muon(
    iterations: dict[str, Any], beta: float, mu_dtype: Any, nesterov: bool
) -> optax.GradientTransformation:
    """`contrib.scale_by_muon` of `MATRICES`, with the same state."""
    whole = contrib.scale_by_muon(**iterations, beta=beta, mu_dtype=mu_dtype, nesterov=nesterov)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, beta, 1)
        count = optax.safe_increment(state.count)
        if nesterov:
            ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
            now = optax.tree.bias_correction(updates, beta, count)
            moment = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        else:
            moment = optax.tree.bias_correction(mu, beta, count)
        found = _orthogonal(moment, state.ns_coeffs, iterations)
        return found, contrib.MuonState(count, optax.tree.cast(mu, mu_dtype), state.ns_coeffs)

    return optax.GradientTransformation(whole.init, update)


def _orthogonal(updates: Any, ns_coeffs: jax.Array, iterations: dict[str, Any]) -> Any:
    """Orthogonalises every matrix; those of equal size, wide or tall, in stacks of at most `STACK` numbers."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    matrices = [_Matrices(path, leaf) for path, leaf in leaves]
    stacks: dict[tuple[int, ...], list[list[int]]] = defaultdict(lambda: [[]])
    for number, one in enumerate(matrices):
        same = stacks[one.wide.shape[1:]]
        if sum(matrices[other].wide.size for other in same[-1]) + one.wide.size > STACK:
            same.append([])
        same[-1].append(number)
    members = [numbers for same in stacks.values() for numbers in same if numbers]
    # Without momentum, `scale_by_muon` is the orthogonalisation alone.
    alone = contrib.scale_by_muon(
        **iterations,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=[contrib.MuonDimensionNumbers(1, 2)] * len(members),
    )
    together = [jnp.concatenate([matrices[number].wide for number in numbers]) for numbers in members]
    together, _ = alone.update(together, alone.init(together)._replace(ns_coeffs=ns_coeffs))
    found: list[Any] = [None] * len(leaves)
    for numbers, stack in zip(members, together, strict=True):
        ends = np.cumsum([len(matrices[number].wide) for number in numbers])
        for number, part in zip(numbers, jnp.split(stack, ends[:-1]), strict=True):
            found[number] = matrices[number].back(part)
    return jax.tree.unflatten(structure, found)


def _scaled(updates: Any, consistent_rms: float) -> Any:
    """Orthogonal updates times sqrt(longer side) * consistent_rms."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf * (_Matrices(path, leaf).wide.shape[-1] ** 0.5 * consistent_rms)

    return jax.tree_util.tree_map_with_path(one, updates)


class _Matrices:
    """A parameter's matrices, as `wide` [N, shorter side, longer side]; `back` gives such an array its shape again."""

    def __init__(self, path: Any, leaf: jax.Array):
        axes = _axes(path)
        assert axes is not None
        short, long = sorted(
            (tuple(axis % leaf.ndim for axis in side) for side in axes),
            key=lambda side: math.prod(leaf.shape[axis] for axis in side),
        )
        batch = tuple(axis for axis in range(leaf.ndim) if axis not in short + long)
        self._order = batch + short + long
        turned = leaf.transpose(self._order)
        self._shape = turned.shape
        self.wide = turned.reshape(-1, *(math.prod(leaf.shape[axis] for axis in side) for side in (short, long)))

    def back(self, wide: jax.Array) -> jax.Array:
        return wide.reshape(self._shape).transpose(np.argsort(self._order))
