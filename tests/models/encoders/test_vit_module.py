"""A class token that starts from the pooled picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from irm_jax.models.config import POOLED_CLASS
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.encoders.vit_module import ViTModule
from irm_jax.models.transformer import BlockConfig
from irm_jax.parallel import rules


@pytest.mark.parametrize("pooled", ["rows", "all"])
def test_the_pooled_part_by_hand(pooled):
    """With no blocks the class token is the norm of its parameters plus the dense layer of the pooled patches."""
    options = {"stem": "patch", "part_tokens": 1}
    module = ViTModule(BlockConfig(width=4, heads=2), 0, (6, 4), 2, 2, **options, pooled_class=pooled)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), np.uint8)
    params = module.init(jax.random.key(1), images, train=False)["params"]
    kernel = params[POOLED_CLASS]["kernel"]
    assert kernel.shape == ((3 if pooled == "rows" else 6) * 4, 4)
    flat = flatten_dict(params)
    flat[(POOLED_CLASS, "bias")] = jnp.arange(4.0)
    found = module.apply({"params": unflatten_dict(flat)}, images, train=False)
    plain = ViTModule(BlockConfig(width=4, heads=2), 0, (6, 4), 2, 2, **options)
    without = {key: leaf for key, leaf in params.items() if key != POOLED_CLASS}
    patches = plain.apply({"params": without}, images, train=False)
    np.testing.assert_array_equal(found.patches, patches.patches)  # nothing else changes
    np.testing.assert_array_equal(found.parts, patches.parts)
    pixels = (np.asarray(images, np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    stem = np.asarray(params["patch_embedding"]["projection"]["kernel"], np.float64)
    grid = np.einsum("bichdx,hdxo->bico", pixels.reshape(2, 3, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5), stem)
    start = grid.max(axis=2) if pooled == "rows" else grid
    start = start.reshape(2, -1) @ np.asarray(kernel, np.float64) + np.arange(4.0)
    start += np.asarray(params["special_tokens"] + params["special_positions"], np.float64)[0, 0]
    normed = (start - start.mean(-1, keepdims=True)) / np.sqrt(start.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found.cls, normed, rtol=1e-4, atol=1e-5)


def test_the_pooled_kernel_is_cut_over_fsdp_as_the_stem_is():
    ViT.add_layouts()
    mesh = jax.sharding.AbstractMesh((1, 2, 1), ("data", "fsdp", "model"))
    assert rules.leaf_spec("params/image_encoder/pooled_class/kernel", (1024, 128), mesh) == P(None, "fsdp")
