"""configs/real_joint.py from pretrained weights: a ViT-S/14 of DINOv2 and MiniLM, for a CPU.

`--config real_joint_pretrained:cuhk01,cuhk_pedes_part` tests all data sets and trains on those that are not named.
docs/real_check.md says how to get the data, the weights and the vocabulary.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load
from irm_jax.errors import ConfigError


def get_config(without: str = "") -> ConfigDict:
    """`without`: names of data sets that are tested but not trained on, separated by commas."""
    config = load("real_joint")
    for name in filter(None, without.split(",")):
        if name not in config.data.train:
            raise ConfigError(f"{name!r} is not trained on here; the data sets are {', '.join(config.data.train)}")
        with config.unlocked():
            del config.data.train[name]
    config.init.image_encoder = "weights/image"
    config.init.text_encoder = "weights/text"
    config.init.editing_blocks = True
    config.data.vocab = "weights/text"
    # The sizes of both weight files, at pictures of 11 x 5 patches.
    config.model.preset = "small"
    config.model.patch = config.model.stride = config.model.template_patch = 14
    config.model.image_size = (154, 70)
    config.model.instruction_image_size = (56, 56)
    config.model.template_statistics = "imagenet"
    config.model.max_length = 40
    config.model.patch_dropout = 0.5  # half of the work per picture
    config.data.batch_size = 96
    config.data.instruction_dropout = 0.5
    config.loss.contrast_weight = 1.0
    config.optimizer.learning_rate = 3e-4
    # At the rate of what starts from random numbers, pretrained encoders forget more than they learn.
    config.optimizer.rate_multipliers = ("^(image_encoder|text_encoder)/=0.1",)
    config.optimizer.frozen = "^template_encoder/"  # no task here has templates
    config.optimizer.clip_norm = 1.0
    config.train.steps = 2500
    config.checkpoint.every = 100
    config.checkpoint.keep = 2
    return config
