"""The training of the shipped weights `irm_jax.Embedder("demo")`: a longer quickstart, on three times the people.

Its people are those of another seed than the quickstart's, so that the quickstart's test people are new to it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load


def get_config() -> ConfigDict:
    config = load("quickstart")
    config.data.dir = "data/demo"
    config.data.procedural.seed = 1
    config.data.procedural.train_people = 288
    config.train.steps = 1200
    config.optimizer.warmup_steps = 50
    return config
