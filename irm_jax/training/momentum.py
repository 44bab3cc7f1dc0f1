"""The momentum model: an exponential moving average of the parameters, which makes keys and soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def averaged_part(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are averaged: all but the identity heads, which no key needs."""
    return {name: part for name, part in params.items() if not name.startswith("head_")}


def start(params: Mapping[str, Any]) -> dict[str, Any]:
    """The momentum parameters before the first step, as copies: a donated state must not hold an array twice."""
    return jax.tree.map(jnp.copy, averaged_part(params))


def update(momentum: Any, params: Mapping[str, Any], decay: float) -> Any:
    """Returns decay * momentum + (1 - decay) * params, leaf by leaf.

    Batch statistics are not averaged: the momentum model normalises by the batch itself.

    Source: docs/method.md, "IRM++: memory bank".
    """
    return jax.tree.map(lambda m, p: decay * m + (1.0 - decay) * p.astype(m.dtype), momentum, averaged_part(params))
