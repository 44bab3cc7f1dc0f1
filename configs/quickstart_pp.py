"""The quickstart with the memory bank of IRM++: 2,048 keys, made by a momentum model under another augmentation.

The momentum model follows within ten steps, because the run is short. The text-to-image objectives of IRM++ are left
out: they cost time, and in 400 steps from random numbers none of them has helped (docs/ablations_paper.md). At the size
of the paper configs/irm_pp.py has them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load


def get_config() -> ConfigDict:
    config = load("quickstart")
    config.momentum.decay = 0.9
    config.momentum.second_view = True
    config.memory_bank.size = 2048
    config.memory_bank.ramp_steps = 100
    return config
