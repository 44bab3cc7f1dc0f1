"""The loss of IRM++: every row against the momentum keys of its batch and of the memory bank."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows
from irm_jax.losses.parts import log_sum_exp, total

EXACT = jax.lax.Precision.HIGHEST


class Candidates(Protocol):
    """Keys with what is known of them; see `memory_bank.Entries`. identity -1: an empty slot."""

    key: jax.Array  # [N, W], unit rows
    instruction: jax.Array  # [N, E], unit rows, centred by kind when the key was made
    identity: jax.Array  # i32[N]
    dataset: jax.Array  # i32[N]
    task: jax.Array  # i32[N]
    kind: jax.Array  # i32[N], -1: no instruction of its own


class Rules(NamedTuple):
    """Who counts as what.

    `known_overlap` bool[sets, sets]: people of these data sets may be the same without being linked: such pairs are
    neither positive nor negative. `negative_only` i32[n]: tasks whose entries are never positives. `task_negatives`:
    only entries of the anchor's own task are negatives.
    """

    known_overlap: jax.Array
    negative_only: tuple[int, ...]
    task_negatives: bool


class MemoryBankAux(NamedTuple):
    """What the loss saw, an anchor (no gradient); 0 where the anchor is invalid.

    `dropped`: valid, but without a positive of any weight; `positives`, `negatives`: candidates that counted;
    `same_identity_mass`: share of the soft targets on the anchor's positives (0 without soft supervision).
    """

    dropped: jax.Array  # bool[A]
    positives: jax.Array  # float[A]
    negatives: jax.Array  # float[A]
    same_identity_mass: jax.Array  # float[A]


def memory_bank_loss(
    embedding: Inexact[Array, "A W"],
    anchor: Candidates,
    own_row: Int[Array, " A"],
    valid: Bool[Array, " A"],
    batch: Candidates,
    bank: Candidates | None,
    rules: Rules,
    *,
    temperature: float,
    soft: bool,
) -> tuple[Float[Array, " A"], Float[Array, " A"], MemoryBankAux]:
    """Hard and soft supervision of each anchor, not yet weighted against each other.

    s_ij = cosine of the anchor's embedding and key j / temperature. With P the candidates of the anchor's identity,
    its own key left out, and N those of other identities:

        hard_i = sum_P w_ij log(1 + sum_N exp(s_in - s_ij)) / sum_P w_ij
        soft_i = cross-entropy of softmax(s_i) under g_i = softmax of the same with the anchor's own key in its place,
                 both over P and N

    w_ij = max(0, centred cosine of the two instructions) where both have an instruction of their own of one kind,
    else 1. Positives do not compete with each other, and an entry of the anchor's identity is never a negative.
    Gradient passes through `embedding` only.

    Args:
      embedding: the anchors', not yet of unit length. valid: False for padding.
      anchor: what is known of the anchors, and their own momentum keys.
      batch: the batch's momentum keys; own_row: where the anchor's own stands among them.
      bank: further candidates, None for none. rules: see its class.
      soft: False leaves the soft part out (zeros), and its cost.

    Returns:
      hard, soft: one value an anchor, f32 or f64, 0 for invalid anchors; hard also 0 without a positive, soft without a
      candidate. aux: see its class.

    Source: method.md section 7 [ours]; the paper names hard and soft supervision by a memory bank, not their form.
    """
    dtype = loss_dtype(embedding)
    z = unit_rows(keep_rows(embedding, valid, dtype))
    anchor = jax.lax.stop_gradient(anchor)
    teacher = keep_rows(anchor.key, valid, dtype)
    low = jnp.finfo(dtype).min / 2  # finite: without a candidate the result is masked, not inf - inf
    scores, positive, negative, weight, taught = [], [], [], [], []
    for source, excluded in ((batch, own_row), (bank, None)):
        if source is None:
            continue
        source = jax.lax.stop_gradient(source)
        keys = source.key.astype(dtype)
        scores.append(jnp.einsum("aw,nw->an", z, keys, precision=EXACT) / temperature)
        pos, neg = _roles(anchor, source, valid, rules)
        if excluded is not None:
            other = jnp.arange(keys.shape[0], dtype=excluded.dtype)[None, :] != excluded[:, None]
            pos, neg = pos & other, neg & other
        positive.append(pos)
        negative.append(neg)
        weight.append(jnp.where(pos, _agreement(anchor, source, dtype), jnp.zeros((), dtype)))
        if soft:
            taught.append(jnp.einsum("aw,nw->an", teacher, keys, precision=EXACT) / temperature)

    negatives = log_sum_exp([jnp.where(n, s, low) for n, s in zip(negative, scores, strict=True)])
    parts = [jnp.sum(w * jax.nn.softplus(negatives[:, None] - s), axis=1) for w, s in zip(weight, scores, strict=True)]
    weights = total([jnp.sum(w, axis=1) for w in weight])
    has_positive = weights > 0
    zero = jnp.zeros((), dtype)
    hard = jnp.where(has_positive, total(parts) / jnp.where(has_positive, weights, 1.0), zero)

    candidate = [p | n for p, n in zip(positive, negative, strict=True)]
    soft_loss, mass = jnp.zeros_like(hard), jnp.zeros_like(hard)
    if soft:
        normalizer = log_sum_exp([jnp.where(c, s, low) for c, s in zip(candidate, scores, strict=True)])
        teacher_sum = log_sum_exp([jnp.where(c, t, low) for c, t in zip(candidate, taught, strict=True)])
        targets = [
            jnp.where(c, jnp.exp(t - teacher_sum[:, None]), zero) for c, t in zip(candidate, taught, strict=True)
        ]
        expected = total([jnp.sum(g * s, axis=1) for g, s in zip(targets, scores, strict=True)])
        any_candidate = jnp.any(jnp.stack([jnp.any(c, axis=1) for c in candidate]), axis=0)
        soft_loss = jnp.where(any_candidate, normalizer - expected, zero)
        mass = total([jnp.sum(jnp.where(p, g, zero), axis=1) for p, g in zip(positive, targets, strict=True)])
    aux = MemoryBankAux(
        dropped=valid & ~has_positive,
        positives=_count(positive, dtype),
        negatives=_count(negative, dtype),
        same_identity_mass=mass,
    )
    return hard, soft_loss, jax.lax.stop_gradient(aux)


def _roles(
    anchor: Candidates, source: Candidates, valid: Bool[Array, " A"], rules: Rules
) -> tuple[Bool[Array, "A N"], Bool[Array, "A N"]]:
    """Which candidates are positives and which are negatives of each anchor."""
    usable = valid[:, None] & (anchor.identity >= 0)[:, None] & (source.identity >= 0)[None, :]
    same = anchor.identity[:, None] == source.identity[None, :]
    overlap = jnp.take(rules.known_overlap, anchor.dataset, axis=0, mode="clip")
    overlap = jnp.take(overlap, source.dataset, axis=1, mode="clip")
    negative = usable & ~same & ~overlap
    if rules.task_negatives:
        negative &= anchor.task[:, None] == source.task[None, :]
    positive = usable & same
    for task in rules.negative_only:
        positive &= (source.task != task)[None, :]
    return positive, negative


def _agreement(anchor: Candidates, source: Candidates, dtype: jnp.dtype) -> Float[Array, "A N"]:
    """w_ij: the cosine of two instructions of one kind, at least 0; 1 where either has none of its own."""
    pair = anchor.instruction.astype(dtype), source.instruction.astype(dtype)
    cosine = jnp.einsum("ae,ne->an", *pair, precision=EXACT)
    comparable = (anchor.kind[:, None] == source.kind[None, :]) & (anchor.kind >= 0)[:, None]
    return jnp.where(comparable, jnp.clip(cosine, 0.0, 1.0), jnp.ones((), dtype))


def _count(masks: Sequence[Bool[Array, "A N"]], dtype: jnp.dtype) -> Float[Array, " A"]:
    return total([jnp.sum(mask.astype(dtype), axis=1) for mask in masks])
