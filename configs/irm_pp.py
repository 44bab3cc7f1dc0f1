"""IRM++ at paper scale: configs/irm.py with the memory bank and all text-to-image objectives (method sections 6 and 7).

Bank and queue hold 65,536 entries each; keys see another augmentation and another caption than the rows. Hard
supervision alone: soft supervision has not been shown to add anything.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import irm


def get_config() -> ConfigDict:
    config = irm.get_config()
    plus_plus(config)
    config.memory_bank.size = 65_536
    config.text_to_image.queue_size = 65_536
    config.model.fusion_depth = 6
    config.memory_bank.overlaps = config.evaluation.overlaps
    return config


def plus_plus(config: ConfigDict) -> None:
    """Switches on what IRM++ adds to IRM, all but its sizes."""
    config.momentum.second_view = True
    config.text_to_image.momentum_contrast = True
    config.loss.matching_weight = 1.0
    config.loss.masked_weight = 1.0
    config.loss.replaced_weight = 0.5
