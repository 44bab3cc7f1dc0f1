"""The schedule by hand, and the weight-decay mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irm_jax.config.layer_rates import Recipe, RecipeError
from irm_jax.training import optimizer


def test_schedule_by_hand():
    rate = optimizer.schedule(2.0, steps=100, warmup_steps=10)
    assert float(rate(jnp.int32(0))) == pytest.approx(0.02)
    assert float(rate(jnp.int32(5))) == pytest.approx(2 * 0.505 * (1 + np.cos(np.pi * 0.05)) / 2)
    assert float(rate(jnp.int32(10))) == pytest.approx(2 * (1 + np.cos(np.pi * 0.1)) / 2)
    assert float(rate(jnp.int32(50))) == pytest.approx(1.0)
    assert float(rate(jnp.int32(100))) == pytest.approx(0.0, abs=1e-6)


def test_decay_mask_by_path():
    params = {"head": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}
    assert optimizer.decay_mask(params, "") == {"head": {"kernel": True, "bias": True}, "norm": {"scale": True}}
    assert optimizer.decay_mask(params, r"(bias|scale)$") == {
        "head": {"kernel": True, "bias": False}, "norm": {"scale": False},
    }  # fmt: skip


def test_clipping_bounds_the_update_of_sgd_like_steps():
    settings = {
        "learning_rate": 1.0, "steps": 10, "warmup_steps": 0, "weight_decay": 0.0, "no_decay": "", "beta1": 0.0,
        "beta2": 0.0,
    }  # fmt: skip
    params = {"w": jnp.ones(4)}
    for clip, seen in ((0.0, 100.0), (1.0, 1.0)):
        chain = optimizer.make_optimizer(**settings, clip_norm=clip)
        state = chain.init(params)
        with jax.numpy_dtype_promotion("standard"):  # as the training step runs optax
            _, after = chain.update({"w": jnp.full(4, 50.0)}, state, params)
        moments = after[1][0]
        assert float(jnp.sqrt(jnp.sum(moments.mu["w"] ** 2))) == pytest.approx(seen, rel=1e-5)


def tower(blocks):
    layers = {f"layer_{i}": {"kernel": jnp.ones(2)} for i in range(blocks)}
    return {"word_embedding": jnp.ones(2), "blocks": layers, "final_norm": {"scale": jnp.ones(2)}}


def test_layer_decay_by_hand():
    """Three blocks: 1/16 before them, then 1/8, 1/4, 1/2, and 1 after them; nothing outside of an encoder."""
    params = {"image_encoder": tower(3), "text_encoder": tower(1), "head_cls": jnp.ones(2)}
    found = optimizer.factors(params, Recipe(layer_decay=0.5))
    image, text = found["image_encoder"], found["text_encoder"]
    blocks = [float(image["blocks"][f"layer_{i}"]["kernel"]) for i in range(3)]
    assert [float(image["word_embedding"]), *blocks, float(image["final_norm"]["scale"])] == [
        1 / 16,
        1 / 8,
        1 / 4,
        1 / 2,
        1,
    ]
    assert float(text["word_embedding"]) == 1 / 4
    assert float(found["head_cls"]) == 1
    stacked = {"layers": {"block": {"kernel": jnp.ones((3, 2))}}}
    scanned = {**params, "image_encoder": {**params["image_encoder"], "blocks": stacked}}
    kernel = optimizer.factors(scanned, Recipe(layer_decay=0.5))["image_encoder"]["blocks"]["layers"]["block"]["kernel"]
    assert kernel.tolist() == [[1 / 8], [1 / 4], [1 / 2]]


def test_frozen_parameters_stand_still_and_multipliers_scale_the_step():
    params = {"image_encoder": tower(1), "text_encoder": tower(1), "head_cls": jnp.ones(2)}
    recipe = Recipe("text_encoder/", ("encoder/blocks/=0.25", "encoder/=0.5"))
    settings = {
        "learning_rate": 1.0, "steps": 10, "warmup_steps": 0, "weight_decay": 0.1, "no_decay": "", "beta1": 0.9,
        "beta2": 0.999, "clip_norm": 1.0,
    }  # fmt: skip
    gradient = jax.tree.map(lambda x: 3 * x, params)
    # Frozen gradients do not take part in clipping: 3 a number in 4 arrays of 2 numbers.
    steps = {}
    for name, chain in (
        ("plain", optimizer.make_optimizer(**settings)),
        ("recipe", optimizer.make_optimizer(**settings, recipe=recipe)),
    ):  # fmt: skip
        state = chain.init(params)
        assert jax.tree.structure(state) == jax.tree.structure(optimizer.make_optimizer(**settings).init(params))
        with jax.numpy_dtype_promotion("standard"):
            steps[name], after = chain.update(gradient, state, params)
    assert float(after[1][0].mu["head_cls"][0]) == pytest.approx(0.1 * 3 / np.sqrt(8 * 9), rel=1e-5)
    image, text = steps["recipe"]["image_encoder"], steps["recipe"]["text_encoder"]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(text))
    whole = float(steps["recipe"]["head_cls"][0])
    assert whole == pytest.approx(float(steps["plain"]["head_cls"][0]), rel=1e-5)
    assert float(image["blocks"]["layer_0"]["kernel"][0]) == pytest.approx(whole / 4, rel=1e-5)
    assert float(image["final_norm"]["scale"][0]) == pytest.approx(whole / 2, rel=1e-5)


def test_frozen_parameters_have_no_gradient_and_no_backward_pass():
    params = {"image_encoder": tower(2), "head_cls": jnp.ones(2)}
    stacked = {"layers": {"block": {"kernel": jnp.ones((2, 2))}}}
    for encoder, frozen in ((tower(2), "encoder/blocks"), ({"blocks": stacked}, "layer_[01]/")):
        params = {"image_encoder": encoder, "head_cls": jnp.ones(2)}

        def loss(p, frozen=frozen):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(optimizer.without_gradient(p, frozen)))

        gradient = jax.grad(loss)(params)
        assert all(np.all(x == 0) for x in jax.tree.leaves(gradient["image_encoder"]["blocks"]))
        assert np.all(gradient["head_cls"] != 0)
        trained = len(jax.tree.leaves(params)) - len(jax.tree.leaves(params["image_encoder"]["blocks"]))
        assert str(jax.make_jaxpr(jax.grad(loss))(params)).count(" = cos ") == trained
    # Of stacked layers that are not all frozen none is cut off: the optimizer keeps the frozen ones from moving.
    encoder = {"image_encoder": {"blocks": stacked}}
    gradient = jax.grad(lambda p: jnp.sum(jax.tree.leaves(optimizer.without_gradient(p, "layer_0/"))[0]))(encoder)
    assert np.all(jax.tree.leaves(gradient)[0] == 1)


def test_recipes_that_cannot_be_meant():
    for recipe, message in (
        (Recipe(multipliers=("0.5",)), "'0.5' is no PATTERN=FACTOR"),
        (Recipe(multipliers=("a=b",)), "'a=b' is no PATTERN=FACTOR"),
        (Recipe(multipliers=("a=-1",)), "of a factor >= 0"),
        (Recipe(frozen="("), "no regular expression"),
        (Recipe(layer_decay=0.0), "layer_decay = 0.0 must be above 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe.check()
    with pytest.raises(RecipeError, match="no parameter's path fits 'imge_encoder'; the paths begin with head_cls"):
        optimizer.scaled(optax.identity(), Recipe(frozen="imge_encoder")).init({"head_cls": jnp.ones(2)})
