"""The exported embedding function gives what the model gives, for any number of rows."""

import importlib.util

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.export import PLATFORMS, export_embedding
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise

CONFIG = presets.preset(
    "tiny", width=16, image_size=(32, 16), image_depth=1, image_heads=2, text_depth=1, text_heads=2, max_length=10,
    template_heads=2, projection_width=8, editing_depth=1, vocab_size=32, num_identities=8, instruction_tokens=None,
    stem="patch", template_stem="patch",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """A model and variables of random numbers."""
    model, rng = IRM(CONFIG), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 10), jnp.int32), method=initialise))
    return model, jax.tree.map(lambda x: (0.3 * np.abs(rng.normal(size=x.shape)) + 0.05).astype(np.float32), shapes)


@pytest.mark.usefixtures("quick_programs")
def test_exported_function_equals_the_model(trained):
    model, variables = trained
    exported = export_embedding(model, variables, "text")
    if importlib.util.find_spec("flatbuffers"):  # the extra `export`: by way of a file
        exported = jax.export.deserialize(exported.serialize())
    assert exported.platforms == PLATFORMS

    def pair(m, image, sentence):
        return m.embed(m.encode_images(image), m.encode_sentences(sentence)).embedding

    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.integers(0, 256, (3, 32, 16, 3), dtype=np.uint8))
    sentence = jnp.asarray(rng.integers(1, 32, (3, 10), dtype=np.int32))
    expected = np.asarray(jax.jit(lambda i, s: model.apply(variables, i, s, method=pair))(image, sentence))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for rows in (3, 1):
        np.testing.assert_allclose(exported.call(image[:rows], sentence[:rows]), expected[:rows], atol=1e-5)


def test_an_instruction_can_be_an_image(trained):
    exported = export_embedding(*trained, "image")
    assert [aval.shape[1:] for aval in exported.in_avals] == [(32, 16, 3), (32, 32, 3)]
    assert exported.out_avals[0].shape[1:] == (32,)
