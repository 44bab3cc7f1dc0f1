"""The configuration: every key with its default (`get_config`), and the run files that set them (`load`)."""

from __future__ import annotations

from irm_jax.config.keys import evaluation_set, get_config, train_unit
from irm_jax.config.recipes import from_scratch, irm_plus_plus, quick_recipe, small_real
from irm_jax.config.run_files import load

__all__ = [
    "evaluation_set", "from_scratch", "get_config", "irm_plus_plus", "load", "quick_recipe", "small_real",
    "train_unit",
]  # fmt: skip
