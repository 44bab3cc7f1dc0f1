"""The annotations of arrays are checked while tests run (type_checker.py): a wrong shape or type is an error."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from irm_jax.losses.key_products import key_products
from irm_jax.losses.reductions import log_sum_exp


def test_the_annotated_shapes_pass() -> None:
    assert log_sum_exp([jnp.ones((2, 3)), jnp.ones((2, 5))]).shape == (2,)
    assert key_products(jnp.ones((2, 4)), jnp.ones((3, 4), jnp.bfloat16)).shape == (2, 3)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="parts"):
        log_sum_exp([jnp.ones((2, 3, 4))])
    with pytest.raises(TypeCheckError, match="keys"):
        key_products(jnp.ones((2, 4)), jnp.ones((3, 5)))


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="rows"):
        key_products(jnp.ones((2, 4), jnp.int32), jnp.ones((3, 4)))
