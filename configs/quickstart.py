"""One IRM model for all six tasks on the procedural benchmark, in minutes on two cores, with nothing to download.

It learns by `irm_jax.config.quick_recipe`; configs/quickstart_paper.py, which it begins with, by the paper's.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load, quick_recipe


def get_config() -> ConfigDict:
    config = quick_recipe(load("quickstart_paper"))
    config.train.steps = 250
    config.data.procedural.edition = 2
    return config
