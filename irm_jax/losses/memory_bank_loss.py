"""The loss of IRM++: every row against the momentum keys of its batch and of the memory bank."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows
from irm_jax.losses.key_products import key_products
from irm_jax.losses.reductions import log_sum_exp, total

MANY_KEYS, ANCHOR_BLOCKS = 16_384, 4
"""Against MANY_KEYS keys and more, anchors come in ANCHOR_BLOCKS blocks, one after the other, and the arrays [A/4, N]
of a block are computed again in its backward pass. The loss then holds about as much as four arrays [A, N]."""


@runtime_checkable
class Candidates(Protocol):
    """Keys with what is known of them, see `objectives.lanes.MomentumKeys`. Identity -1: an empty slot."""

    key: jax.Array  # [N, W], unit rows
    instruction: jax.Array  # [N, E], unit rows, centred by kind when the key was made
    identity: jax.Array  # int32[N]
    dataset: jax.Array  # int32[N]
    task: jax.Array  # int32[N]
    kind: jax.Array  # int32[N], -1: no instruction of its own


class Anchors(NamedTuple):
    """A rows that are supervised.

    Attributes:
        embedding: [A, W], not yet of unit length.
        keys: their own momentum keys with their labels.
        own_row: int32[A], where an anchor's own key stands among the keys of the batch.
        valid: bool[A], False for padding.
    """

    embedding: jax.Array
    keys: Candidates
    own_row: jax.Array
    valid: jax.Array


class Rules(NamedTuple):
    """Which candidates are positives and which are negatives.

    Attributes:
        known_overlap: bool[sets, sets]; people of these data sets may be the same without being linked, so that such
            pairs are never negatives. (People who are linked have one identity and are positives.)
        negative_only: numbers of the tasks whose keys are never positives.
        task_negatives: whether only keys of the anchor's own task are negatives.
        instructed_positives: whether only keys with an instruction of the anchor's kind are positives.
    """

    known_overlap: jax.Array
    negative_only: tuple[int, ...]
    task_negatives: bool
    instructed_positives: bool = False


class MemoryBankAux(NamedTuple):
    """What the loss saw per anchor, without gradient; 0 where the anchor is invalid.

    Attributes:
        dropped: valid anchors without a positive of any weight.
        positives, negatives: number of candidates that counted as such.
        same_identity_mass: share of the soft targets on the anchor's positives (0 without soft supervision).
    """

    dropped: jax.Array  # bool[A]
    positives: jax.Array  # float[A]
    negatives: jax.Array  # float[A]
    same_identity_mass: jax.Array  # float[A]


class _Labels(NamedTuple):
    """The numbers of `Candidates`."""

    identity: jax.Array
    dataset: jax.Array
    task: jax.Array
    kind: jax.Array

    @classmethod
    def of(cls, source: Candidates) -> "_Labels":
        return cls(source.identity, source.dataset, source.task, source.kind)


class _Block(NamedTuple):
    """Anchors that are computed at a time: unit rows, their momentum keys, instructions, labels, own row, valid."""

    query: jax.Array
    teacher: jax.Array | None
    instruction: jax.Array
    labels: _Labels
    own_row: jax.Array
    valid: jax.Array


class _Roles(NamedTuple):
    """Per source of candidates: bool[A, N] positives and negatives, float[A, N] weights of the positives."""

    positive: list[jax.Array]
    negative: list[jax.Array]
    weight: list[jax.Array]


def memory_bank_loss(
    anchors: Anchors, batch: Candidates, bank: Candidates | None, rules: Rules, *, temperature: float, soft: bool
) -> tuple[Float[Array, " A"], Float[Array, " A"], MemoryBankAux]:
    """Hard and soft supervision of each anchor, not yet weighted against each other.

    Let s_ij be the cosine of anchor i's embedding and key j, divided by the temperature, P the candidates of the
    anchor's identity without its own key, and N the candidates of other identities:

        hard_i = sum_P w_ij log(1 + sum_N exp(s_in - s_ij)) / sum_P w_ij
        soft_i = cross-entropy of softmax(s_i) under g_i, the softmax of the same cosines with the anchor's own
                 momentum key in the place of its embedding; both over P and N

    w_ij = max(0, centred cosine of the two instructions) where both rows have an instruction of their own of one kind,
    else 1. Positives do not compete with each other, and a key of the anchor's identity is never a negative. Gradient
    passes through `anchors.embedding` only.

    Args:
        anchors: A rows.
        batch: the momentum keys of the batch.
        bank: further candidates, None for none.
        rules: see its class.
        temperature: divides all cosines.
        soft: False leaves out the soft part (zeros) and its cost.

    Returns:
        hard, soft: one value per anchor, float32 or float64, 0 for invalid anchors; hard is also 0 without a positive,
            soft without a candidate.
        aux: see its class.

    Source: docs/method.md, "IRM++: memory bank".
    """
    dtype = loss_dtype(anchors.embedding)
    query = unit_rows(keep_rows(anchors.embedding, anchors.valid, dtype))
    own = jax.lax.stop_gradient(anchors.keys)
    sources = jax.lax.stop_gradient([batch] if bank is None else [batch, bank])
    teacher = keep_rows(own.key, anchors.valid, dtype) if soft else None

    def supervised(block: _Block) -> tuple[jax.Array, jax.Array, MemoryBankAux]:
        return _supervision(block, sources, rules, temperature)

    block = _Block(query, teacher, own.instruction.astype(dtype), _Labels.of(own), anchors.own_row, anchors.valid)
    if sum(source.identity.shape[0] for source in sources) < MANY_KEYS:
        hard, soft_loss, aux = supervised(block)
    else:
        hard, soft_loss, aux = _in_blocks(supervised, block)
    return hard, soft_loss, jax.lax.stop_gradient(aux)


def _in_blocks(supervised: Any, block: _Block) -> Any:
    """`supervised` over the anchors in ANCHOR_BLOCKS blocks, their intermediate arrays never all in memory."""
    anchors = block.query.shape[0]
    missing = -anchors % ANCHOR_BLOCKS  # rows that are not valid

    def cut(x: jax.Array) -> jax.Array:
        whole = jnp.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
        return whole.reshape(ANCHOR_BLOCKS, -1, *x.shape[1:])

    found = jax.lax.map(jax.checkpoint(supervised), jax.tree.map(cut, block))
    return jax.tree.map(lambda x: x.reshape(-1)[:anchors], found)


def _supervision(
    block: _Block, sources: Sequence[Candidates], rules: Rules, temperature: float
) -> tuple[Float[Array, " A"], Float[Array, " A"], MemoryBankAux]:
    """`memory_bank_loss` of one block of anchors. The first source holds the anchors' own keys."""

    def products(queries: jax.Array, name: str) -> list[jax.Array]:
        return [key_products(queries, getattr(source, name)) for source in sources]

    cosines = products(block.query, "key")
    taught = products(block.teacher, "key") if block.teacher is not None else None
    roles = _roles(block, products(block.instruction, "instruction"), [_Labels.of(source) for source in sources], rules)
    dtype = block.query.dtype
    zero = jnp.zeros((), dtype)
    low = jnp.finfo(dtype).min / 2  # finite: without a candidate the result is masked, not inf - inf
    scores = [cosine / temperature for cosine in cosines]
    negatives = log_sum_exp([jnp.where(n, s, low) for n, s in zip(roles.negative, scores, strict=True)])
    parts = [
        jnp.sum(w * jax.nn.softplus(negatives[:, None] - s), axis=1) for w, s in zip(roles.weight, scores, strict=True)
    ]
    weights = total([jnp.sum(w, axis=1) for w in roles.weight])
    has_positive = weights > 0
    hard = jnp.where(has_positive, total(parts) / jnp.where(has_positive, weights, 1.0), zero)
    soft, mass = jnp.zeros_like(hard), jnp.zeros_like(hard)
    if taught is not None:
        soft, mass = _soft(scores, [product / temperature for product in taught], roles)
    aux = MemoryBankAux(
        dropped=block.valid & ~has_positive,
        positives=_count(roles.positive, dtype),
        negatives=_count(roles.negative, dtype),
        same_identity_mass=mass,
    )
    return hard, soft, aux


def _soft(
    scores: list[Float[Array, "A _"]], taught: list[Float[Array, "A _"]], roles: _Roles
) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """Soft supervision from the scores of the anchors and of their momentum keys, and its mass on the positives."""
    zero = jnp.zeros((), scores[0].dtype)
    low = jnp.finfo(scores[0].dtype).min / 2
    candidate = [p | n for p, n in zip(roles.positive, roles.negative, strict=True)]
    normalizer = log_sum_exp([jnp.where(c, s, low) for c, s in zip(candidate, scores, strict=True)])
    teacher_sum = log_sum_exp([jnp.where(c, t, low) for c, t in zip(candidate, taught, strict=True)])
    targets = [jnp.where(c, jnp.exp(t - teacher_sum[:, None]), zero) for c, t in zip(candidate, taught, strict=True)]
    expected = total([jnp.sum(g * s, axis=1) for g, s in zip(targets, scores, strict=True)])
    any_candidate = jnp.any(jnp.stack([jnp.any(c, axis=1) for c in candidate]), axis=0)
    mass = total([jnp.sum(jnp.where(p, g, zero), axis=1) for p, g in zip(roles.positive, targets, strict=True)])
    return jnp.where(any_candidate, normalizer - expected, zero), mass


def _roles(block: _Block, agreements: list[Float[Array, "A _"]], sources: list[_Labels], rules: Rules) -> _Roles:
    """Positives with their weights, and negatives, of each anchor among the candidates of each source."""
    anchor, own_row = block.labels, block.own_row
    roles = _Roles([], [], [])
    for number, (source, agreement) in enumerate(zip(sources, agreements, strict=True)):
        positive, negative = _related(anchor, source, block.valid, rules)
        if number == 0:
            other = jnp.arange(agreement.shape[1], dtype=own_row.dtype)[None, :] != own_row[:, None]
            positive, negative = positive & other, negative & other
        comparable = (anchor.kind[:, None] == source.kind[None, :]) & (anchor.kind >= 0)[:, None]
        positive = positive & comparable if rules.instructed_positives else positive
        agreed = jnp.where(comparable, jnp.clip(agreement, 0.0, 1.0), jnp.ones((), agreement.dtype))
        roles.positive.append(positive)
        roles.negative.append(negative)
        roles.weight.append(jnp.where(positive, agreed, jnp.zeros((), agreement.dtype)))
    return roles


def _related(
    anchor: _Labels, source: _Labels, valid: Bool[Array, " A"], rules: Rules
) -> tuple[Bool[Array, "A N"], Bool[Array, "A N"]]:
    """Which candidates are positives and which are negatives of each anchor, by their labels alone."""
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


def _count(masks: Sequence[Bool[Array, "A _"]], dtype: jnp.dtype) -> Float[Array, " A"]:
    return total([jnp.sum(mask.astype(dtype), axis=1) for mask in masks])
