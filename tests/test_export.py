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
)  # fmt: skip


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("kind", ["text", "image"])
def test_exported_function_equals_the_model(kind):
    model = IRM(CONFIG)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 10), jnp.int32), method=initialise))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: (0.3 * np.abs(rng.normal(size=x.shape)) + 0.05).astype(np.float32), shapes)
    exported = export_embedding(model, variables, kind)
    if importlib.util.find_spec("flatbuffers"):  # the extra `export`: by way of a file
        exported = jax.export.deserialize(exported.serialize())
    assert exported.platforms == PLATFORMS

    def pair(m, image, ask):
        instruction = m.encode_sentences(ask) if kind == "text" else m.encode_templates(ask, 10)
        return m.embed(m.encode_images(image), instruction).embedding

    plain = jax.jit(lambda image, ask: model.apply(variables, image, ask, method=pair))
    for rows in (1, 3) if kind == "text" else (2,):
        image = jnp.asarray(rng.integers(0, 256, (rows, 32, 16, 3), dtype=np.uint8))
        sentence = rng.integers(1, 32, (rows, 10), dtype=np.int32)
        template = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
        ask = jnp.asarray(sentence if kind == "text" else template)
        expected = np.asarray(plain(image, ask))
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(exported.call(image, ask), expected, atol=1e-5)
