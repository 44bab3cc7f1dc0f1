"""The quickstart with IRM++: a memory bank of 2,048 keys, and all text-to-image objectives."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import irm_pp, quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    irm_pp.plus_plus(config)
    config.memory_bank.size = 2048
    config.memory_bank.ramp_steps = 100
    config.text_to_image.queue_size = 2048
    config.text_to_image.soft_ramp_steps = 100
    config.model.fusion_depth = 2
    return config
