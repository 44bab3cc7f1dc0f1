"""A class token that starts from the pooled picture; patches that training leaves out; images that grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from irm_jax.models.config import POOLED_CLASS
from irm_jax.models.encoders import positions
from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.encoders.vit_module import ViTModule, kept_patches, resized
from irm_jax.models.transformer import BlockConfig, Stack
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


@pytest.mark.usefixtures("quick_programs")
class TestPatchDropout:
    """The encoder on three images of 4 x 3 patches of 2 pixels, with two part tokens; in training 3 patches stay."""

    images = np.random.default_rng(1).integers(0, 256, (3, 8, 6, 3), np.uint8)
    block = BlockConfig(width=4, heads=2)

    @classmethod
    def function(cls, *, share=0.75, train=True, depth=0, pooled="none"):
        """Parameters -> features."""
        options = {"part_tokens": 2, "patch_dropout": share, "pooled_class": pooled}
        module = ViTModule(cls.block, depth, (8, 6), 2, 2, **options)
        key = jax.random.key(5)
        return lambda params: module.apply({"params": params}, cls.images, train=train, rngs={"dropout": key})

    @pytest.fixture(scope="class")
    @classmethod
    def params(cls):
        """Of one block and a class token pooled from rows; without those, of the encoder without."""
        module = ViTModule(cls.block, 1, (8, 6), 2, 2, part_tokens=2, pooled_class="rows")
        return jax.jit(lambda: module.init(jax.random.key(2), cls.images, train=False)["params"])()

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, params):
        """[3, 3]: which patches stay. Without blocks each token is computed on its own."""
        bare = {key: leaf for key, leaf in params.items() if key not in ("blocks", POOLED_CLASS)}
        full, left = (jax.jit(cls.function(share=share))(bare) for share in (0.0, 0.75))
        np.testing.assert_allclose(left.cls, full.cls, atol=1e-6)
        np.testing.assert_allclose(left.parts, full.parts, atol=1e-6)
        same = np.isclose(np.asarray(left.patches)[:, :, None], np.asarray(full.patches)[:, None], atol=1e-5).all(-1)
        assert (same.sum(2) == 1).all()  # rows of the full set, with their positions
        return same.argmax(2)

    def stem(self, params):
        """[3, 12, 4]: the patches before their positions, in float64."""
        pixels = (np.asarray(self.images, np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        kernel = np.asarray(params["patch_embedding"]["projection"]["kernel"], np.float64)
        pixels = pixels.reshape(3, 4, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        return np.einsum("bichdx,hdxo->bico", pixels, kernel).reshape(3, 12, 4)

    def special(self, params):
        """[3, 3, 4]: class token and part tokens before the blocks."""
        return np.asarray(params["special_tokens"] + params["special_positions"], np.float64).repeat(3, 0)

    @pytest.mark.parametrize(
        ("count", "share", "kept"), [(12, 0.5, 6), (10, 0.7, 3), (10, 0.75, 3), (3, 0.99, 1), (32, 0.0, 32)]
    )
    def test_the_number_that_stays(self, count, share, kept):
        assert kept_patches(count, share) == kept

    def test_each_image_draws_its_own(self, places):
        assert places.shape == (3, 3)
        assert (np.diff(places) > 0).all()  # in their order, none twice
        assert len({tuple(row) for row in places}) == 3

    def test_blocks_read_what_stays(self, params, places):
        patches = self.stem(params) + np.asarray(params["grid_positions"]).reshape(1, 12, 4)
        left = np.take_along_axis(patches, places[:, :, None], axis=1)
        tokens = jnp.asarray(np.concatenate([self.special(params), left], axis=1), jnp.float32)

        @jax.jit
        def expected(params):
            x = Stack(self.block, 1).apply({"params": params["blocks"]}, tokens, deterministic=True)
            return self.block.layer_norm("final_norm").apply({"params": params["final_norm"]}, x)

        found = jax.jit(self.function(depth=1))({k: leaf for k, leaf in params.items() if k != POOLED_CLASS})
        found = np.concatenate([found.cls[:, None], found.parts, found.patches], axis=1)
        np.testing.assert_allclose(found, expected(params), atol=1e-5)

    @pytest.mark.parametrize("pooled", ["rows", "all"])
    def test_a_pooled_class_token_reads_what_stays(self, params, places, pooled):
        """A row of the grid without a patch counts as 0."""
        patches, start = self.stem(params), np.zeros((3, 4 if pooled == "rows" else 12, 4))
        for image, places_of_image in enumerate(places):
            for place in places_of_image:
                row = [other for other in places_of_image if other // 3 == place // 3]
                if pooled == "rows":
                    start[image, place // 3] = patches[image, row].max(0)
                else:
                    start[image, place] = patches[image, place]
        kernel = np.resize(np.asarray(params[POOLED_CLASS]["kernel"], np.float64), (start[0].size, 4))
        given = {**params, POOLED_CLASS: {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(4)}}
        found = jax.jit(self.function(pooled=pooled))({k: leaf for k, leaf in given.items() if k != "blocks"})
        first = self.special(params)[:, 0] + start.reshape(3, -1) @ kernel
        normed = (first - first.mean(-1, keepdims=True)) / np.sqrt(first.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(found.cls, normed, rtol=1e-4, atol=1e-5)

    def test_evaluation_reads_all_patches_and_a_share_of_0_is_the_program_without(self, params):
        def program(share, train):
            return str(jax.make_jaxpr(self.function(share=share, train=train, depth=1, pooled="rows"))(params))

        assert program(0.75, False) == program(0.0, False) == program(0.0, True)
        assert program(0.75, True) != program(0.0, True)


def test_positions_are_resized_as_weights_are():
    grid = np.random.default_rng(2).normal(size=(1, 8, 4, 3)).astype(np.float32)
    assert resized(grid, (8, 4)) is grid
    for size in ((4, 2), (6, 3), (5, 4)):
        found = jax.jit(resized, static_argnums=1)(grid, size)
        np.testing.assert_allclose(found, positions.resize(grid, size, "bilinear"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooled", ["rows", "all"])
@pytest.mark.usefixtures("quick_programs")
def test_a_smaller_image_by_hand(pooled):
    """Of a grid of 2 x 1 in an encoder of 4 x 2: positions are means of 2 x 2, the pooled part is stretched to it."""
    module = ViTModule(BlockConfig(width=4, heads=2), 0, (8, 4), 2, 2, part_tokens=0, pooled_class=pooled)
    params = jax.jit(lambda: module.init(jax.random.key(0), np.zeros((1, 8, 4, 3), np.uint8), train=False)["params"])()
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 2, 3), np.uint8)
    growing = module.clone(smaller_images=True)
    found = jax.jit(lambda params: growing.apply({"params": params}, images, train=False))(params)
    pixels = (np.asarray(images, np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    kernel = np.asarray(params["patch_embedding"]["projection"]["kernel"], np.float64)
    stem = np.einsum("brhxc,hxco->bro", pixels.reshape(2, 2, 2, 2, 3), kernel)
    grid = np.asarray(params["grid_positions"], np.float64).reshape(2, 2, 2, 4).mean((1, 2))
    stretch = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    rows = np.einsum("ro,bod->brd", stretch, stem)
    start = rows if pooled == "rows" else rows.repeat(2, 1)
    first = np.asarray(params["special_tokens"] + params["special_positions"], np.float64)[0]
    first = first + start.reshape(2, -1) @ np.asarray(params[POOLED_CLASS]["kernel"], np.float64)
    for tokens, expected in ((found.cls, first), (found.patches, stem + grid)):
        expected = expected - expected.mean(-1, keepdims=True)
        expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-5)
    for encoder, shape in ((module, (4, 2)), (growing, (10, 4)), (growing, (1, 2))):
        with pytest.raises(ValueError, match=r"built for \(8, 4\) images|smaller than one patch"):
            jax.eval_shape(
                lambda e=encoder, s=shape: e.apply({"params": params}, np.zeros((1, *s, 3), np.uint8), train=False)
            )
