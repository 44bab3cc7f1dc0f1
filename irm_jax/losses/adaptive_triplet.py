"""Adaptive triplet loss: batch-hard triplets whose margin follows how far the instructions agree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import chosen_distances, keep_rows, loss_dtype, pairwise_squared_distance
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows


class AdaptiveTripletAux(NamedTuple):
    """What the loss saw, a row (no gradient). All values are 0 where the anchor is invalid or dropped.

    `dropped` anchors are valid but have no other row of their identity or no negative; `active` ones violate the
    margin. Averages go over the kept anchors, `valid & ~dropped`.
    """

    dropped: jax.Array  # bool[B]
    active: jax.Array  # bool[B]
    beta_1: jax.Array  # float[B], instruction similarity to the farthest row of the same identity
    beta_2: jax.Array  # float[B], to the second-farthest
    positive_distance: jax.Array  # float[B], D_p1
    negative_distance: jax.Array  # float[B], D_n


def adaptive_triplet_loss(
    features: Inexact[Array, "B D"],
    identity: Int[Array, " B"],
    dataset: Int[Array, " B"],
    valid: Bool[Array, " B"],
    similarity: Inexact[Array, "B B"],
    margin: float = 0.3,
    rank_weight: float = 0.1,
) -> tuple[Float[Array, " B"], AdaptiveTripletAux]:
    """One triplet an anchor, mined over all rows given (the global batch).

    p1 and p2 are the farthest and second-farthest rows of the anchor's identity (the anchor counts as one of them), n
    the nearest row of another identity of its data set; ties go to the lowest row. D is the Euclidean distance of the
    features as they are, beta_k = similarity[anchor, p_k] without gradient:

        relu(D_p1 - D_n + margin * beta_1) + rank_weight * R
        R = relu(D_p1 - D_p2 + margin * (beta_1 - beta_2))   if beta_1 > beta_2
            relu(D_p2 - D_p1 + margin * (beta_2 - beta_1))   if beta_1 < beta_2
            0                                                if equal

    With beta = 1 everywhere this is the batch-hard triplet loss. All pairs are compared by squared distances summed
    from differences, and the three chosen ones are computed again from differences, with gradient: nothing cancels.
    Squared distances are clamped at 1e-12 and pass no gradient below it (rows that coincide, the anchor itself).

    Args:
      features: un-normalised, B rows. identity: global. dataset: who competes with whom. valid: False for padding.
      similarity: rho of `instruction_similarity.similarity`; its rows are anchors.
      margin: in units of D. rank_weight: weight of R.

    Returns:
      loss: one value a row, f32 or f64; 0 for invalid and for dropped anchors. aux: see its class.

    Source: method.md section 5; the paper's adaptive triplet loss.
    """
    dtype = loss_dtype(features)
    rows = constrain_rows(keep_rows(features, valid, dtype))
    others = constrain_replicated(rows)  # gathered once for all that follows; anchors stay where they are
    rho = jax.lax.stop_gradient(similarity).astype(dtype)
    squared = pairwise_squared_distance(rows, others)

    both = valid[:, None] & valid[None, :]
    one_person = identity[:, None] == identity[None, :]
    same = both & one_person
    other = both & ~one_person & (dataset[:, None] == dataset[None, :])

    row_number = jnp.arange(rows.shape[0])[None, :]
    farthest = jnp.argmax(jnp.where(same, squared, -jnp.inf), axis=1)
    remaining = same & (row_number != farthest[:, None])
    second = jnp.argmax(jnp.where(remaining, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(other, squared, jnp.inf), axis=1)
    kept = valid & jnp.any(remaining, axis=1) & jnp.any(other, axis=1)

    d_p1, d_p2, d_n = chosen_distances(rows, others, farthest, second, nearest)
    beta_1 = jnp.take_along_axis(rho, farthest[:, None], axis=1, mode="clip")[:, 0]
    beta_2 = jnp.take_along_axis(rho, second[:, None], axis=1, mode="clip")[:, 0]

    margin_term = jax.nn.relu(d_p1 - d_n + margin * beta_1)
    # +1: p1 agrees more and must come nearer; -1: p2; 0: nothing to rank, the term is relu(0).
    order = jnp.sign(beta_1 - beta_2)
    rank_term = jax.nn.relu(order * (d_p1 - d_p2) + margin * jnp.abs(beta_1 - beta_2))

    zero = jnp.zeros((), dtype)
    loss = jnp.where(kept, margin_term + rank_weight * rank_term, zero)
    aux = AdaptiveTripletAux(
        dropped=valid & ~kept,
        active=kept & (margin_term > 0),
        beta_1=jnp.where(kept, beta_1, zero),
        beta_2=jnp.where(kept, beta_2, zero),
        positive_distance=jnp.where(kept, d_p1, zero),
        negative_distance=jnp.where(kept, d_n, zero),
    )
    return loss, jax.lax.stop_gradient(aux)
