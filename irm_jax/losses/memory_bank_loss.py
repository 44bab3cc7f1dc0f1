"""The loss of IRM++: every row against the momentum keys of its batch and of the memory bank."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows
from irm_jax.losses.key_products import key_products
from irm_jax.losses.reductions import log_sum_exp, total

MANY_KEYS, ANCHOR_BLOCKS = 16_384, 4
"""Against so many keys the anchors come in blocks, one after the other, and a block's arrays [A/4, N] are made again
for its backward pass: the loss then holds about as much as four arrays [A, N], whatever the compiler makes of it."""


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
    never negatives (those who are linked have one identity, and are positives). `negative_only` i32[n]: tasks whose
    entries are never positives. `task_negatives`: only entries of the anchor's own task are negatives.
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
    sources = jax.lax.stop_gradient([batch] if bank is None else [batch, bank])
    teacher = keep_rows(anchor.key, valid, dtype) if soft else None

    def supervised(rows: Any) -> tuple[jax.Array, jax.Array, MemoryBankAux]:
        z, teacher, instruction, labels, own_row, valid = rows

        def products(queries: jax.Array, name: str) -> list[jax.Array]:
            return [key_products(queries, getattr(source, name)) for source in sources]

        return _supervision(
            products(z, "key"),
            products(teacher, "key") if soft else None,
            products(instruction, "instruction"),
            [labels, *(_labels(source) for source in sources)],
            own_row, valid, rules=rules, temperature=temperature,
        )  # fmt: skip

    rows = (z, teacher, anchor.instruction.astype(dtype), _labels(anchor), own_row, valid)
    anchors, keys = z.shape[0], sum(source.identity.shape[0] for source in sources)
    if keys < MANY_KEYS:
        hard, soft_loss, aux = supervised(rows)
    else:
        missing = -anchors % ANCHOR_BLOCKS  # rows that are not valid

        def cut(x: jax.Array) -> jax.Array:
            whole = jnp.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
            return whole.reshape(ANCHOR_BLOCKS, -1, *x.shape[1:])

        found = jax.lax.map(jax.checkpoint(supervised), jax.tree.map(cut, rows))
        hard, soft_loss, aux = jax.tree.map(lambda x: x.reshape(-1)[:anchors], found)
    return hard, soft_loss, jax.lax.stop_gradient(aux)


class _Labels(NamedTuple):
    """The numbers of `Candidates`."""

    identity: jax.Array
    dataset: jax.Array
    task: jax.Array
    kind: jax.Array


def _labels(source: Candidates) -> _Labels:
    return _Labels(source.identity, source.dataset, source.task, source.kind)


def _supervision(
    cosines: list[Float[Array, "A N"]],
    taught: list[Float[Array, "A N"]] | None,
    agreements: list[Float[Array, "A N"]],
    labels: list[_Labels],
    own_row: Int[Array, " A"],
    valid: Bool[Array, " A"],
    *,
    rules: Rules,
    temperature: float,
) -> tuple[Float[Array, " A"], Float[Array, " A"], MemoryBankAux]:
    """`memory_bank_loss` from its products: of the anchors with the keys of each source, of their momentum keys with
    the same, of the instructions. `labels`: the anchors', then each source's; the first source has the own rows."""
    anchor, sources = labels[0], labels[1:]
    dtype = cosines[0].dtype
    zero = jnp.zeros((), dtype)
    low = jnp.finfo(dtype).min / 2  # finite: without a candidate the result is masked, not inf - inf
    scores = [cosine / temperature for cosine in cosines]
    positive, negative, weight = [], [], []
    for number, (source, agreement) in enumerate(zip(sources, agreements, strict=True)):
        pos, neg = _roles(anchor, source, valid, rules)
        if number == 0:
            other = jnp.arange(agreement.shape[1], dtype=own_row.dtype)[None, :] != own_row[:, None]
            pos, neg = pos & other, neg & other
        comparable = (anchor.kind[:, None] == source.kind[None, :]) & (anchor.kind >= 0)[:, None]
        agreed = jnp.where(comparable, jnp.clip(agreement, 0.0, 1.0), jnp.ones((), dtype))
        positive.append(pos)
        negative.append(neg)
        weight.append(jnp.where(pos, agreed, zero))

    negatives = log_sum_exp([jnp.where(n, s, low) for n, s in zip(negative, scores, strict=True)])
    parts = [jnp.sum(w * jax.nn.softplus(negatives[:, None] - s), axis=1) for w, s in zip(weight, scores, strict=True)]
    weights = total([jnp.sum(w, axis=1) for w in weight])
    has_positive = weights > 0
    hard = jnp.where(has_positive, total(parts) / jnp.where(has_positive, weights, 1.0), zero)

    soft_loss, mass = jnp.zeros_like(hard), jnp.zeros_like(hard)
    if taught is not None:
        candidate = [p | n for p, n in zip(positive, negative, strict=True)]
        taught = [product / temperature for product in taught]
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
    return hard, soft_loss, aux


def _roles(
    anchor: _Labels, source: _Labels, valid: Bool[Array, " A"], rules: Rules
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


def _count(masks: Sequence[Bool[Array, "A N"]], dtype: jnp.dtype) -> Float[Array, " A"]:
    return total([jnp.sum(mask.astype(dtype), axis=1) for mask in masks])
