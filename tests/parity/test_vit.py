"""Image encoders against timm's and Hugging Face's, and position grids against torch's interpolation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from parity import check, scramble, torch

from irm_jax.models.encoders import positions
from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.encoders.vit_module import ViTModule
from irm_jax.models.transformer import BlockConfig

SIZE, PATCH = (32, 32), 8


def pixels(size=SIZE):
    """Random images, as our encoder and as theirs reads them."""
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    mean, std = (np.array(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return jnp.asarray(images), torch.tensor((images / np.float32(255) - mean) / std).permute(0, 3, 1, 2)


def features(params, depth, heads, width, *, size=SIZE, patch=PATCH, parts=0):
    block = BlockConfig(width=width, heads=heads)
    encoder = ViTModule(block, depth, size, patch, patch, part_tokens=parts)
    return encoder.apply({"params": params}, pixels(size)[0], train=False)


def started(arrays):
    """The tower as a model of the same grid starts from it: layer scale multiplied in."""
    own = {path.removeprefix("image_encoder/"): array for path, array in arrays.items()}
    fitted = ViT.weights.fitted(own, own["grid_positions"].shape[1:3], "")
    return unflatten_dict(fitted, sep="/")


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_timm(converted, layer_scale):
    timm = pytest.importorskip("timm")
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=48, depth=3, num_heads=3, num_classes=5, init_values=layer_scale
    )
    vit = scramble(vit)
    _, arrays = converted("vit", vit.state_dict(), heads=3)
    found = features(started(arrays), 3, 3, 48)
    theirs = vit.forward_features(pixels()[1])
    check("ViT (timm)", np.concatenate([found.cls[:, None], found.patches], axis=1), theirs)


@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_hugging_face(converted, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
    }  # fmt: skip
    more = {"intermediate_size": 192, "attn_implementation": "eager"} if name == "ViT" else {}
    vit = scramble(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options, **more)))
    vit.save_pretrained(tmp_path / "saved")  # files keep the names of old, whatever the classes call them now
    from safetensors.torch import load_file

    _, arrays = converted("vit", load_file(tmp_path / "saved" / "model.safetensors"), heads=3)
    found = features(started(arrays), 2, 3, 48)
    theirs = vit(pixels()[1]).last_hidden_state
    check(f"{name} (Hugging Face)", np.concatenate([found.cls[:, None], found.patches], axis=1), theirs)


@pytest.mark.parametrize("method", positions.METHODS)
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (8, 8)), ((24, 24), (8, 8)), ((16, 8), (24, 8)), ((4, 2), (16, 8)), ((7, 5), (3, 11))]
)
def test_positions(method, old, new):
    grid = torch.randn(1, *old, 6)
    mode, _, antialias = method.partition("_")
    theirs = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), new, mode=mode, align_corners=False, antialias=bool(antialias)
    )
    check(f"positions, {method}", positions.resize(grid.numpy(), new, method), theirs.permute(0, 2, 3, 1))
