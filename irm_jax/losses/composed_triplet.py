"""Composed triplet loss: an image under the instruction of another outfit must come to lie at that outfit.

An embedding that ignores the instruction can meet the identity losses. A composed row (an image edited by the
instruction of another outfit that its person owns) asks for more: the same person in other outfits is a negative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from irm_jax.losses.geometry import LabelledRows, chosen_distances, keep_rows, loss_dtype, pairwise_squared_distance
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows

UNNAMED = -1
"""An attribute that an instruction does not name, or that is not known of an image."""


class ComposedTripletAux(NamedTuple):
    """What the loss saw per anchor, without gradient.

    Attributes:
        dropped: valid anchors without a positive or without a negative.
        active: anchors that violate the margin.
    """

    dropped: jax.Array  # bool[C]
    active: jax.Array  # bool[C]


def compare_attributes(
    wanted: Int[Array, "C S"], worn: Int[Array, "B S"]
) -> tuple[Bool[Array, "C B"], Bool[Array, "C B"]]:
    """Which rows wear all that an instruction names, and which wear something that is known to differ.

    Neither holds where a named slot is not known of the row and none of the others differs.
    """
    asked, shown = wanted[:, None, :], worn[None, :, :]
    named = asked != UNNAMED
    matches = jnp.all(~named | (asked == shown), axis=-1)
    differs = jnp.any(named & (shown != UNNAMED) & (asked != shown), axis=-1)
    return matches, differs


def composed_triplet_loss(
    anchors: LabelledRows,
    wanted_attributes: Int[Array, "C S"],
    candidates: LabelledRows,
    attributes: Int[Array, "B S"],
    margin: float = 0.3,
) -> tuple[Float[Array, " C"], ComposedTripletAux]:
    """relu(D_p - D_n + margin): p is the farthest positive and n the nearest negative among the candidates.

    Only candidates of the anchor's data set count, since slots of different data sets mean different things. A
    positive has the anchor's identity and equals every slot that `wanted_attributes` names. A negative has another
    identity, or the same one and a named slot that is known to differ. The same identity with a named slot unknown and
    none that differs is neither. Ties go to the lowest row. Distances are taken as in `adaptive_triplet_loss`.

    Args:
        anchors: C composed rows.
        wanted_attributes: S slots per anchor, -1 for a slot that its instruction does not name.
        candidates: the B rows of the batch under their own instructions.
        attributes: what they wear, -1 for unknown.
        margin: in units of D.

    Returns:
        float32 or float64 [C], 0 for invalid and for dropped anchors; and what the loss saw.

    Source: docs/method.md, "Losses of IRM", composed rows.
    """
    dtype = loss_dtype(anchors.features, candidates.features)
    own = constrain_rows(keep_rows(anchors.features, anchors.valid, dtype))
    rows = constrain_replicated(keep_rows(candidates.features, candidates.valid, dtype))
    squared = pairwise_squared_distance(own, rows)

    matches, differs = compare_attributes(wanted_attributes, attributes)
    comparable = anchors.valid[:, None] & candidates.valid[None, :]
    comparable &= anchors.dataset[:, None] == candidates.dataset[None, :]
    one_person = anchors.identity[:, None] == candidates.identity[None, :]
    positive = comparable & one_person & matches
    negative = comparable & (~one_person | differs)

    farthest = jnp.argmax(jnp.where(positive, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(negative, squared, jnp.inf), axis=1)
    kept = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    d_p, d_n = chosen_distances(own, rows, farthest, nearest)
    zero = jnp.zeros((), dtype)
    loss = jnp.where(kept, jax.nn.relu(d_p - d_n + margin), zero)
    aux = ComposedTripletAux(dropped=anchors.valid & ~kept, active=kept & (loss > 0))
    return loss, jax.lax.stop_gradient(aux)
