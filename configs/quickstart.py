"""One IRM model for all six tasks on the procedural benchmark, in minutes on two cores, with nothing to download.

It learns by `irm_jax.config.quick_recipe`; configs/quickstart_paper.py is the same with the paper's recipe.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load, quick_recipe


def get_config() -> ConfigDict:
    config = quick_recipe(load("procedural"))
    config.data.procedural.edition = 2
    config.train.steps = 150
    config.data.batch_size = 192
    config.optimizer.warmup_steps = 20
    config.checkpoint.every = 100
    return config
