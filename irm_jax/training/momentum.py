"""The momentum model: an exponential moving average of the parameters, which gives keys and soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def averaged_part(params: Mapping[str, Any]) -> dict[str, Any]:
    """What is averaged: every parameter but the identity heads, which no key needs."""
    return {name: part for name, part in params.items() if not name.startswith("head_")}


def start(params: Mapping[str, Any]) -> dict[str, Any]:
    """The momentum parameters before the first step: copies, since a donated state must not hold an array twice."""
    return jax.tree.map(jnp.copy, averaged_part(params))


def update(momentum: Any, params: Mapping[str, Any], decay: float) -> Any:
    """decay * momentum + (1 - decay) * params, leaf by leaf.

    Source: method.md section 6 (momentum copies, decay 0.995). Batch statistics are not averaged: the momentum model
    uses those of the batch.
    """
    return jax.tree.map(lambda m, p: decay * m + (1.0 - decay) * p.astype(m.dtype), momentum, averaged_part(params))
