"""One small model for three tasks on real people: Market-1501 and CUHK01 (trad), attributes (li), captions (t2i).

docs/real_check.md says how to get and build the four data sets and the vocabulary of their captions. No person of their
training parts is tested in any of them. From scratch, in about 40 minutes on two cores (150 to 190 images per second).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import data_sets, from_scratch, keys

SHARES = {"market1501": 5.0, "market1501_attributes": 3.0, "cuhk01": 2.0, "cuhk_pedes_part": 2.0}
"""Rows of each data set in a batch, relative to the others."""


def get_config() -> ConfigDict:
    config = from_scratch(keys.get_config())
    data_sets.train_on(config, tuple(SHARES))
    data_sets.test_on(config, tuple(SHARES))
    for name, share in SHARES.items():
        config.data.train[name].share = share
    # Each identity has one description here, so nobody owns a second outfit that an instruction could ask for.
    config.data.train.market1501_attributes.update({"outfits": 0, "composed": False})
    config.data.build_missing = False
    config.data.batch_size = 192
    config.data.augment.erase_probability = 0.5
    config.model.identity_multiple = 256
    config.loss.contrastive_weight = 2.0  # the only loss of captions
    config.optimizer.warmup_steps = 100
    config.train.steps = 2100
    config.checkpoint.every = 300
    return config
