"""What small models share that start from random numbers: the paper starts from pretrained weights, see default.py."""

from __future__ import annotations

from ml_collections import ConfigDict


def from_scratch(config: ConfigDict) -> ConfigDict:
    """Sets the `tiny` model and a recipe that makes it learn within minutes on a CPU."""
    config.model.preset = "tiny"
    config.optimizer.learning_rate = 2e-3
    # Triplets on plain distances shrink all features to a point before there is an identity to tell [ours].
    config.loss.triplet_unit = "spread"
    config.loss.alpha = 0.1
    # Colours are what sentences and templates name, and what a small model sees first: strong jitter would hide them.
    config.data.augment.brightness = 0.2
    config.data.augment.contrast = 0.2
    config.data.augment.saturation = 0.2
    config.data.augment.hue = 0.02
    config.data.augment.erase_probability = 0.3
    return config
