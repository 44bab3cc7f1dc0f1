"""Market-1501, task trad, a small model from scratch; the official protocol (3,368 queries, 15,913 gallery images).

Build the shards first, outside the checkout: python -m data_pipelines.build --dataset market1501 --raw DIR --out DIR.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import evaluation_set, keys, small_real, train_unit


def get_config() -> ConfigDict:
    config = small_real(keys.get_config())
    with config.unlocked():
        config.data.train.market1501 = train_unit("market1501", "trad")
        config.evaluation.sets.market1501 = evaluation_set("market1501", "trad", ("market",))
    config.data.augment.erase_probability = 0.5
    config.train.steps = 5000
    config.checkpoint.every = 1000
    return config
