"""Trains on some data sets and tests on others: --config transfer:market1501,cuhk03_detected:msmt17,prcc.

A small model from scratch, as in configs/market1501.py. Build the shards of all named data sets first.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import data_sets, keys, small_real


def get_config(sets: str = "market1501:msmt17") -> ConfigDict:
    """`sets`: names to train on, a colon, names to test on. Names are separated by commas."""
    train, _, test = sets.partition(":")
    config = small_real(keys.get_config())
    data_sets.train_on(config, [name for name in train.split(",") if name])
    data_sets.test_on(config, [name for name in test.split(",") if name])
    config.train.steps = 5000
    config.checkpoint.every = 1000
    return config
