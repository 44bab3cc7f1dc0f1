"""One small model for three tasks on real people: Market-1501 and CUHK01 (trad), attributes (li), captions (t2i).

docs/real_check.md says how the four data sets are got and built, and the vocabulary of their captions; no person of
their training parts is tested in any of them. From scratch, about 40 minutes at the 150 to 190 images a second of two
cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import data_sets, keys, scratch

SHARES = {"market1501": 5.0, "market1501_attributes": 3.0, "cuhk01": 2.0, "cuhk_pedes_part": 2.0}
"""Rows of each data set in a batch, relative to the others."""


def get_config() -> ConfigDict:
    config = scratch.from_scratch(keys.get_config())
    data_sets.train_on(config, tuple(SHARES))
    data_sets.test_on(config, tuple(SHARES))
    for name, share in SHARES.items():
        config.data.train[name].share = share
    # An identity has one description here, so nobody owns a second outfit to ask for.
    config.data.train.market1501_attributes.update({"outfits": 0, "composed": False})
    config.data.build_missing = False
    config.data.batch_size = 192
    config.data.augment.erase_probability = 0.5
    config.model.identity_multiple = 256
    config.loss.contrastive_weight = 2.0  # the only loss that captions have
    config.optimizer.warmup_steps = 100
    config.train.steps = 2100
    config.checkpoint.every = 300
    return config
