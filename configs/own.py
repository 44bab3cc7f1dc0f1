"""Own pictures: --config own --config.data.table=crops.csv builds, trains, evaluates, reports; nothing else is needed.

docs/own_data.md describes the table (or list, or folder), which tasks it allows and how people are divided. A small
model from scratch, as in configs/market1501.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import keys, small_real


def get_config() -> ConfigDict:
    config = small_real(keys.get_config())
    config.data.table = "crops.csv"  # yours: --config.data.table=FILE
    config.data.repeat_people = True  # a batch may have more places than a small table has people
    config.data.augment.erase_probability = 0.5
    config.train.steps = 2000
    config.checkpoint.every = 500
    return config
