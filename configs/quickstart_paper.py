"""The quickstart by the paper's recipe, on the first edition of the benchmark (docs/ablations_paper.md)."""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load


def get_config() -> ConfigDict:
    config = load("procedural")
    config.train.steps = 150
    config.data.batch_size = 192
    config.optimizer.warmup_steps = 20
    config.checkpoint.every = 100
    return config
