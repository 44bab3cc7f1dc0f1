"""IRM++ at paper scale: configs/irm.py with the memory bank and all text-to-image objectives (docs/method.md).

Bank and queue hold 65,536 entries each; keys see another augmentation and another caption than the rows. Supervision is
hard alone: soft supervision has not been shown to add anything (docs/ablations_paper.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import irm_plus_plus, load


def get_config() -> ConfigDict:
    config = irm_plus_plus(load("irm"))
    config.memory_bank.size = 65_536
    config.text_to_image.queue_size = 65_536
    config.model.fusion_depth = 6
    config.memory_bank.overlaps = config.evaluation.overlaps
    return config
