"""The quickstart with IRM++: a memory bank of 2,048 keys, and text-to-image objectives.

Two settings differ from irm_pp.py because the run is short: the momentum model follows within ten steps, and captions
contrast within the batch. With the paper's decay captions learned next to nothing in 200 steps; with a queue of 2,048
keys, dozens of steps old, half as much in 150 steps (mAP .030; one seed each). After 400 steps a queue does no harm any
more: docs/ablations.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import irm_plus_plus, load


def get_config() -> ConfigDict:
    config = irm_plus_plus(load("quickstart"))
    config.momentum.decay = 0.9
    config.memory_bank.size = 2048
    config.memory_bank.ramp_steps = 100
    config.text_to_image.momentum_contrast = False
    config.text_to_image.soft_ramp_steps = 100
    config.model.fusion_depth = 2
    return config
