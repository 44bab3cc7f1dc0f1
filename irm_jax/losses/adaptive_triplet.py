"""Adaptive triplet loss: batch-hard triplets whose margin follows how far two instructions agree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from irm_jax.losses.geometry import LabelledRows, chosen_distances, keep_rows, loss_dtype, pairwise_squared_distance
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows


class AdaptiveTripletAux(NamedTuple):
    """What the loss saw per row, without gradient. All values are 0 where the anchor is invalid or dropped.

    Attributes:
        dropped: valid anchors without another row of their identity, or without a negative.
        active: anchors that violate the margin.
        beta_1: instruction similarity to the farthest row of the same identity.

    Averages are taken over the kept anchors, `valid & ~dropped`.
    """

    dropped: jax.Array  # bool[B]
    active: jax.Array  # bool[B]
    beta_1: jax.Array  # float[B]


class _Triplets(NamedTuple):
    """Row numbers of the two positives and the negative of each anchor; `kept` is False where one is missing."""

    farthest: Int[Array, " B"]
    second: Int[Array, " B"]
    nearest: Int[Array, " B"]
    kept: Bool[Array, " B"]


def adaptive_triplet_loss(
    rows: LabelledRows, similarity: Float[Array, "B B"], margin: float = 0.3, rank_weight: float = 0.1
) -> tuple[Float[Array, " B"], AdaptiveTripletAux]:
    """One triplet per anchor, mined over all rows given (the global batch).

    p1 and p2 are the farthest and second-farthest rows of the anchor's identity (the anchor counts as one of them), n
    is the nearest row of another identity of its data set; ties go to the lowest row. D is the Euclidean distance of
    the features as they are, and beta_k = similarity[anchor, p_k], without gradient:

        relu(D_p1 - D_n + margin * beta_1) + rank_weight * R
        R = relu(D_p1 - D_p2 + margin * (beta_1 - beta_2))   if beta_1 > beta_2
            relu(D_p2 - D_p1 + margin * (beta_2 - beta_1))   if beta_1 < beta_2
            0                                                if equal

    With beta = 1 everywhere this is the batch-hard triplet loss. All pairs are compared by squared distances summed
    from differences, and the three chosen distances are computed again from differences, with gradient: nothing
    cancels. Squared distances are clamped at 1e-12 and pass no gradient below it (rows that coincide, the anchor).

    Args:
        rows: B rows; the features are not normalised.
        similarity: rho of `instruction_similarity.similarity`; its rows are anchors.
        margin: in units of D.
        rank_weight: weight of R.

    Returns:
        float32 or float64 [B], 0 for invalid and for dropped anchors; and what the loss saw.

    Source: docs/method.md, "Losses of IRM", adaptive triplet.
    """
    dtype = loss_dtype(rows.features)
    anchors = constrain_rows(keep_rows(rows.features, rows.valid, dtype))
    others = constrain_replicated(anchors)  # gathered once for all that follows; anchors stay where they are
    rho = jax.lax.stop_gradient(similarity).astype(dtype)
    chosen = _mine(pairwise_squared_distance(anchors, others), rows)
    d_p1, d_p2, d_n = chosen_distances(anchors, others, chosen.farthest, chosen.second, chosen.nearest)
    beta_1 = jnp.take_along_axis(rho, chosen.farthest[:, None], axis=1, mode="clip")[:, 0]
    beta_2 = jnp.take_along_axis(rho, chosen.second[:, None], axis=1, mode="clip")[:, 0]

    margin_term = jax.nn.relu(d_p1 - d_n + margin * beta_1)
    # +1: p1 agrees more and must come nearer; -1: p2; 0: nothing to rank, the term is relu(0).
    order = jnp.sign(beta_1 - beta_2)
    rank_term = jax.nn.relu(order * (d_p1 - d_p2) + margin * jnp.abs(beta_1 - beta_2))

    kept, zero = chosen.kept, jnp.zeros((), dtype)
    loss = jnp.where(kept, margin_term + rank_weight * rank_term, zero)
    aux = AdaptiveTripletAux(
        dropped=rows.valid & ~kept,
        active=kept & (margin_term > 0),
        beta_1=jnp.where(kept, beta_1, zero),
    )
    return loss, jax.lax.stop_gradient(aux)


def _mine(squared: Float[Array, "B B"], rows: LabelledRows) -> _Triplets:
    """The hardest rows of each anchor, from the squared distances of all pairs."""
    both = rows.valid[:, None] & rows.valid[None, :]
    one_person = rows.identity[:, None] == rows.identity[None, :]
    same = both & one_person
    other = both & ~one_person & (rows.dataset[:, None] == rows.dataset[None, :])
    row_number = jnp.arange(squared.shape[0])[None, :]
    farthest = jnp.argmax(jnp.where(same, squared, -jnp.inf), axis=1)
    remaining = same & (row_number != farthest[:, None])
    second = jnp.argmax(jnp.where(remaining, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(other, squared, jnp.inf), axis=1)
    return _Triplets(farthest, second, nearest, rows.valid & jnp.any(remaining, axis=1) & jnp.any(other, axis=1))
