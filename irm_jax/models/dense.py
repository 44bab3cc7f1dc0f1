"""The matrix product of dense layers, with a gradient that is fast on a CPU."""

from __future__ import annotations

import math
from typing import Any

import jax

from irm_jax.models import plain_forms

Array = jax.Array


def product(
    x: Array,
    kernel: Array,
    dimension_numbers: tuple[tuple[Any, Any], tuple[Any, Any]],
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """The `dot_general` of Flax's dense layers: x [..., *K], kernel [*K, *N] -> [..., *N], in their own dtype.

    Raises ValueError for dimension numbers of another form, and for a precision or output dtype.
    """
    ((of_x, of_kernel), batch) = dimension_numbers
    count = len(of_kernel)
    last = tuple(range(x.ndim - count, x.ndim))
    if (tuple(of_x), tuple(of_kernel)) != (last, tuple(range(count))) or any(map(len, batch)):
        raise ValueError(f"the last axes of x are contracted with the first of the kernel, not {dimension_numbers}")
    if precision is not None or preferred_element_type is not None:
        raise ValueError("a dense layer multiplies in its own dtype at the default precision")
    return (_plain if plain_forms.active() else _product)(x, kernel, count)


def _plain(x: Array, kernel: Array, contracted: int) -> Array:
    return jax.lax.dot_general(x, kernel, ((range(x.ndim - contracted, x.ndim), range(contracted)), ((), ())))


_product = jax.custom_vjp(_plain, nondiff_argnums=(2,))


def _forward(x: Array, kernel: Array, contracted: int) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, contracted), (x, kernel)


def _backward(contracted: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept

    def to_kernel(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, contracted), kernel)(gradient)[0]

    def to_kernel_on_cpu(x: Array, gradient: Array) -> Array:
        """One matrix product that contracts the rows of both.

        JAX's own gradient multiplies in the other order and transposes, for which XLA:CPU copies `gradient` and takes
        its slower routine. Where x is the smaller one it is transposed first, which selects the faster routine.
        """
        wide, high = math.prod(kernel.shape[:contracted]), math.prod(kernel.shape[contracted:])
        rows, gradient = x.reshape(-1, wide), gradient.reshape(-1, high)
        if wide < high:
            # Without the barrier the transposition would be folded into the product.
            found = jax.lax.optimization_barrier(rows.T) @ gradient
        else:
            found = jax.lax.dot_general(rows, gradient, (((0,), (0,)), ((), ())))
        return found.reshape(kernel.shape)

    (to_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, contracted), x)(gradient)
    return to_x, jax.lax.platform_dependent(x, gradient, cpu=to_kernel_on_cpu, default=to_kernel)


_product.defvjp(_forward, _backward)
