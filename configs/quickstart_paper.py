"""The quickstart by the paper's recipe, on the first edition of the benchmark (docs/ablations_paper.md)."""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load, paper_recipe


def get_config() -> ConfigDict:
    config = paper_recipe(load("quickstart"))
    config.data.procedural.edition = 1
    return config
