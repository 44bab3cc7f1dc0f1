"""Counts the floating-point operations of a program in its jaxpr: every product, times the trips of the loops.

XLA's own count has the body of a loop once. Only matrix products and convolutions are counted, as is usual: 2 per
multiply-add. Recomputed products count again.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core

Flops = collections.Counter[str]
"""FLOPs of all devices together by kind of product: `bf16`, `f32` (default precision), `f32_highest`."""


def count(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Flops:
    """Counts the FLOPs of a jaxpr.

    Of a `cond` the longer branch counts. The body of a `while` counts once, since its trips are not known; `lax.scan`,
    and `lax.fori_loop` with constant bounds, are scans.
    """
    total: Flops = collections.Counter()
    for equation in (jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            ((contracted, _), _) = parameters["dimension_numbers"]
            left, out = _array(equation.invars[0]), _array(equation.outvars[0])
            depth = math.prod(left.shape[axis] for axis in contracted)
            total[_kind(equation)] += 2 * math.prod(out.shape) * depth
        elif name == "conv_general_dilated":
            kernel, out = _array(equation.invars[1]), _array(equation.outvars[0])
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            # The zeros between dilated inputs are not multiplied.
            depth = kernel.size // features // math.prod(parameters["lhs_dilation"])
            total[_kind(equation)] += 2 * math.prod(out.shape) * depth
        elif name == "cond":
            branches: list[Flops] = [count(branch) for branch in parameters["branches"]]
            sizes = [flops.total() for flops in branches]
            total += branches[sizes.index(max(sizes))]
        else:
            times = 1
            if name == "scan":
                times = parameters["length"]
            elif name == "shard_map":  # its inner shapes are per device
                times = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            for inner in _jaxprs(parameters):
                for kind, flops in count(inner).items():
                    total[kind] += times * flops
    return total


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.ClosedJaxpr, core.Jaxpr)):
                yield item


def _array(variable: Any) -> Any:
    """Shape, size and dtype of a variable."""
    return variable.aval


def _kind(equation: Any) -> str:
    types = [variable.aval.dtype for variable in equation.invars[:2]]
    if all(jnp.dtype(t).itemsize <= 2 for t in types):
        return "bf16"
    precision = equation.params["precision"]
    exact = precision is not None and lax.Precision.HIGHEST in tuple(precision)
    return "f32_highest" if exact or any(jnp.dtype(t).itemsize > 4 for t in types) else "f32"
