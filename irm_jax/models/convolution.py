"""The convolution of stems, with gradients that are fast on a CPU inside a loop too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from irm_jax.models import plain_forms

Array = jax.Array
Pads = tuple[tuple[int, int], ...]

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
"""The only layout that XLA:CPU has a fast routine for, and the one that Flax's layers ask for."""


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], **options: Any
) -> Array:
    """The `conv_general_dilated` of Flax's layers: x [B, H, W, C], kernel [h, w, C, D] -> [B, H', W', D].

    Raises ValueError for dilations, groups, a precision or other axes.
    """
    axes = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, CHANNELS_LAST)
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": axes, "feature_group_count": 1}
    if changed := {name: value for name, value in options.items() if value != plain.get(name)}:
        raise ValueError(f"a stem convolves channels last, without dilations, groups or a precision, not by {changed}")
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads = tuple((low, high) for low, high in padding)
    return (_plain if plain_forms.active() else _convolution)(x, kernel, tuple(strides), pads)


def _plain(x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=CHANNELS_LAST)


_convolution = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(x: Any, kernel: Any, strides: tuple[int, ...], pads: Pads) -> tuple[Array, tuple[Array, Array, Any]]:
    # Pixels need no gradient; None is what a backward pass can know that by.
    to_x = jax.numpy.zeros(()) if x.perturbed else None
    return _plain(x.value, kernel.value, strides, pads), (x.value, kernel.value, to_x)


def _backward(strides: tuple[int, ...], pads: Pads, kept: tuple[Array, Array, Any], gradient: Any) -> tuple[Any, Any]:
    """JAX's gradients; on a CPU with their axes moved so that each is a convolution with channels last.

    XLA:CPU moves the axes itself, but not inside loops such as the one over accumulated batches, where a convolution in
    another layout takes a routine that is a hundred times slower (github.com/jax-ml/jax/issues/12868).
    """
    x, kernel, needed = kept
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return None, None
    steps = [(at - 1) * stride + 1 for at, stride in zip(gradient.shape[1:3], strides, strict=True)]
    sizes = list(zip(x.shape[1:3], kernel.shape[:2], steps, pads, strict=True))

    def to_x(kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda x: _plain(x, kernel, strides, pads), x)(gradient)[0]

    def to_kernel(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, strides, pads), kernel)(gradient)[0]

    def to_x_on_cpu(kernel: Array, gradient: Array) -> Array:
        turned = jax.lax.rev(kernel, (0, 1)).swapaxes(2, 3)
        around = [(side - 1 - low, size - step + low) for size, side, step, (low, _) in sizes]
        return jax.lax.conv_general_dilated(
            gradient, turned, (1, 1), around, lhs_dilation=strides, dimension_numbers=CHANNELS_LAST
        )

    def to_kernel_on_cpu(x: Array, gradient: Array) -> Array:
        around = [(low, side - size - low + step - 1) for size, side, step, (low, _) in sizes]
        found = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), (1, 1), around, rhs_dilation=strides,
            dimension_numbers=CHANNELS_LAST,
        )  # fmt: skip
        return found.transpose(1, 2, 0, 3)

    back = jax.lax.platform_dependent(x, gradient, cpu=to_kernel_on_cpu, default=to_kernel)
    if needed is None:
        return None, back
    return jax.lax.platform_dependent(kernel, gradient, cpu=to_x_on_cpu, default=to_x), back


_convolution.defvjp(_forward, _backward, symbolic_zeros=True)
