"""Attention rollout: the product of layers by hand, and maps of a real model that only cover what was read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax import run
from irm_jax.evaluation.report.rollout import (
    _attention,
    _joined,
    _layers,
    _streams,
    attention_rollout,
    caption_rollout,
)
from irm_jax.models.irm import IRM, initialise


def test_layers_are_joined_by_hand():
    first = np.array([[[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])  # two heads, mean 1/2 everywhere
    last = np.array([[[[0.0, 1.0]]]])  # one head, only the first token asks
    # (mean + identity) / 2 = [[.75, .25], [.25, .75]], then [.5, .5] of both rows
    np.testing.assert_allclose(_joined([first, last]), [[[0.5, 0.5]]])
    np.testing.assert_allclose(_joined([first]), [[[0.75, 0.25], [0.25, 0.75]]])


@pytest.fixture(scope="module")
def model(make_micro_config):
    model = IRM(run.model_config(make_micro_config(), vocab_size=300, num_identities=8))
    # The variables need no values of the initialisers: a jitted init that is only traced, then filled by NumPy.
    shapes = jax.eval_shape(
        lambda key, tokens: model.init(key, tokens, method=initialise),
        jax.random.key(0), jnp.ones((1, model.config.max_length), jnp.int32),
    )  # fmt: skip
    filler = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: filler.normal(0, 0.02, s.shape).astype(s.dtype), shapes)
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, *model.config.image_size, 3)).astype(np.uint8)
    templates = random.integers(0, 255, (2, *model.config.instruction_image_size, 3)).astype(np.uint8)
    tokens = np.zeros((2, model.config.max_length), np.int32)
    tokens[0, :6], tokens[1, :9] = [2, 20, 21, 22, 23, 3], [2, 30, 31, 32, 33, 34, 35, 36, 3]
    return model, variables, images, templates, tokens


def test_a_sentences_words_are_read_and_its_padding_is_not(model):
    irm, variables, images, _, tokens = model
    for rollout in (attention_rollout, caption_rollout):
        maps = rollout(irm, variables, images, tokens=tokens)
        assert maps.image.shape == (2, 4, 2)
        assert (maps.image > 0).all()
        assert (maps.image.sum(axis=(1, 2)) < 1).all()  # the rest lies on the special tokens
        np.testing.assert_array_equal(maps.instruction > 0, tokens != 0)
    cut = caption_rollout(irm, variables, images, tokens[:, :12])
    np.testing.assert_allclose(cut.instruction, maps.instruction[:, :12], atol=1e-6)


def test_a_templates_patches_are_read(model):
    irm, variables, images, templates, _ = model
    maps = attention_rollout(irm, variables, images, templates=templates)
    assert maps.image.shape == (2, 4, 2)
    assert maps.instruction.shape == (2, 4, 4)
    assert (maps.instruction > 0).all()


@pytest.mark.nightly
def test_patches_that_editing_does_not_read_have_no_weight_of_their_own(model):
    """The map of a model that reads one patch is that patch's row of the image encoder's, times its weight."""
    irm, variables, images, _, tokens = model
    fewer = IRM(dataclasses.replace(irm.config, editing_patches=1))
    maps = attention_rollout(fewer, variables, images, tokens=tokens)
    layers = _attention(fewer, variables, images, tokens, is_sentence=True)
    (read,) = layers["editing_transformer"]["patches"]
    assert read.shape == (2, 1)
    weights = _joined(_streams(layers["editing_transformer"], fewer.config.editing_depth)[1])[:, 0, 1:]
    encoder = _joined(_layers(layers["image_encoder"], fewer.config.image_depth))[:, 4:, 4:]
    expected = np.stack([weights[row, 0] * encoder[row, read[row, 0]] for row in range(2)])
    np.testing.assert_allclose(maps.image, expected.reshape(2, 4, 2), rtol=1e-5)
