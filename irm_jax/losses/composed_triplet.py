"""Composed triplet loss [ours]: an image under the instruction of another outfit must land on that outfit.

The identity losses are met by an embedding that ignores the instruction. A composed row (an image edited by the
instruction of another outfit its person owns) asks for more: the same person in other outfits is a negative for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import chosen_distances, keep_rows, loss_dtype, pairwise_squared_distance
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows

UNNAMED = -1


class ComposedTripletAux(NamedTuple):
    """What the loss saw, an anchor (no gradient). All values are 0 where the anchor is invalid or dropped.

    `dropped` anchors are valid but have no positive or no negative; `active` ones violate the margin; `own_person` is
    whether the nearest negative is the anchor's own person in another outfit.
    """

    dropped: jax.Array  # bool[C]
    active: jax.Array  # bool[C]
    own_person: jax.Array  # bool[C]
    positive_distance: jax.Array  # float[C]
    negative_distance: jax.Array  # float[C]


def composed_triplet_loss(
    anchor: Inexact[Array, "C D"],
    anchor_identity: Int[Array, " C"],
    anchor_dataset: Int[Array, " C"],
    wanted_attributes: Int[Array, "C S"],
    anchor_valid: Bool[Array, " C"],
    candidates: Inexact[Array, "B D"],
    identity: Int[Array, " B"],
    dataset: Int[Array, " B"],
    attributes: Int[Array, "B S"],
    valid: Bool[Array, " B"],
    margin: float = 0.3,
) -> tuple[Float[Array, " C"], ComposedTripletAux]:
    """relu(D_p - D_n + margin): p the farthest positive, n the nearest negative among the candidates; [ours].

    Candidates of the anchor's data set compete (slots of different data sets mean different things). Positive: the
    anchor's identity, and equal in every slot that `wanted_attributes` names. Negative: every other identity, and the
    same identity where a named slot is known to differ. The same identity with a named slot unknown (-1) and none that
    differs is neither. Ties go to the lowest row. Distances as in `adaptive_triplet_loss`.

    Args:
      anchor: features of the composed rows. wanted_attributes: S slots, -1 = unnamed. anchor_valid: False for padding.
      candidates: features of the batch's rows under their own instructions; attributes: what they wear, -1 = unknown.
      margin: in units of D.

    Returns:
      loss: one value an anchor, f32 or f64; 0 for invalid anchors and for those without a positive or a negative.
      aux: see its class.

    Source: method.md section 5 for the triplet, data.md section 6 for the rows.
    """
    dtype = loss_dtype(anchor, candidates)
    anchors = constrain_rows(keep_rows(anchor, anchor_valid, dtype))
    rows = constrain_replicated(keep_rows(candidates, valid, dtype))
    squared = pairwise_squared_distance(anchors, rows)

    wanted, worn = wanted_attributes[:, None, :], attributes[None, :, :]
    named = wanted != UNNAMED
    matches = jnp.all(~named | (wanted == worn), axis=-1)
    differs = jnp.any(named & (worn != UNNAMED) & (wanted != worn), axis=-1)

    comparable = anchor_valid[:, None] & valid[None, :] & (anchor_dataset[:, None] == dataset[None, :])
    one_person = anchor_identity[:, None] == identity[None, :]
    positive = comparable & one_person & matches
    negative = comparable & (~one_person | differs)

    farthest = jnp.argmax(jnp.where(positive, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(negative, squared, jnp.inf), axis=1)
    kept = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)

    d_p, d_n = chosen_distances(anchors, rows, farthest, nearest)
    zero = jnp.zeros((), dtype)
    loss = jnp.where(kept, jax.nn.relu(d_p - d_n + margin), zero)
    aux = ComposedTripletAux(
        dropped=anchor_valid & ~kept,
        active=kept & (loss > 0),
        own_person=kept & (jnp.take(identity, nearest, mode="clip") == anchor_identity),
        positive_distance=jnp.where(kept, d_p, zero),
        negative_distance=jnp.where(kept, d_n, zero),
    )
    return loss, jax.lax.stop_gradient(aux)
