"""The editing transformer: which patches its guided stream reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.models.editing_transformer import EditingTransformer, nearest_patches
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.transformer import BlockConfig

WIDTH, PATCHES = 4, 6
RANDOM = np.random.default_rng(0)
CLS = RANDOM.normal(size=(3, WIDTH)).astype(np.float32)
IMAGE = RANDOM.normal(size=(3, PATCHES, WIDTH)).astype(np.float32)
IMAGE *= RANDOM.uniform(0.1, 10, (3, PATCHES, 1)).astype(np.float32)  # their lengths must not count


def nearest_by_hand(count):
    cosines = [
        [np.dot(cls, patch) / np.linalg.norm(cls) / np.linalg.norm(patch) for patch in patches]
        for cls, patches in zip(CLS, IMAGE, strict=True)
    ]
    return [np.argsort(row)[::-1][:count].tolist() for row in cosines]


def test_the_patches_of_the_largest_cosine_with_the_class_token():
    assert nearest_patches(CLS, IMAGE, 4).tolist() == nearest_by_hand(4)
    assert nearest_patches(CLS.astype(jnp.bfloat16), IMAGE.astype(jnp.bfloat16), 1).tolist() == nearest_by_hand(1)


@pytest.mark.usefixtures("quick_programs")
def test_the_guided_stream_reads_these_alone():
    """As if the image had no others; the person stream, which reads no patch, is the same; so are gradients."""
    block = BlockConfig(WIDTH, heads=2)
    tokens = RANDOM.normal(size=(3, 2, WIDTH)).astype(np.float32)
    instruction = jax.tree.map(
        jnp.asarray, Instruction(tokens, np.ones((3, 2), bool), np.ones((3, 2), bool), tokens[:, 0])
    )
    some, every = EditingTransformer(block, depth=1, patches=4), EditingTransformer(block, depth=1)
    params = jax.jit(lambda: every.init(jax.random.key(0), CLS, IMAGE, instruction, train=False))()
    index = np.array(nearest_by_hand(4))

    @jax.jit
    def both(image):
        def given(module):
            return lambda patches: module.apply(params, CLS, patches, instruction, train=True)

        chosen = jnp.take_along_axis(image, index[:, :, None], axis=1)
        (person, guided), pull = jax.vjp(given(some), image)
        expected, pull_expected = jax.vjp(given(every), chosen)
        ones = (jnp.ones_like(person), jnp.cos(guided))
        return (person, guided), expected, pull(ones)[0], pull_expected(ones)[0]

    found, expected, gradient, of_chosen = both(IMAGE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(np.asarray(gradient), index[:, :, None], 1), of_chosen, atol=1e-5)
    read = (np.abs(gradient).max(-1) > 0).sum(1)
    assert read.tolist() == [4, 4, 4]
    program = [str(jax.make_jaxpr(lambda x, m=m: m.apply(params, CLS, x, instruction, train=False))(IMAGE))
               for m in (every, every.clone(patches=PATCHES))]  # fmt: skip
    assert program[0] == program[1]
