"""What every run on the procedural benchmark shares: its six data sets, test sets and the `tiny` model."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import default

TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")


def get_config() -> ConfigDict:
    config = default.get_config()
    with config.unlocked():
        for task in TASKS:
            name = f"procedural_{task}"
            config.data.train[name] = default.train_unit(name, task)
            config.evaluation.sets[name] = default.evaluation_set(name, task, (name, f"{name}+identity"))
    config.data.train.procedural_t2i.images_per_identity = 1
    # Colours are attributes here, named by sentences and templates: strong colour jitter would make them lie.
    config.data.augment.brightness = 0.2
    config.data.augment.contrast = 0.2
    config.data.augment.saturation = 0.2
    config.data.augment.hue = 0.02
    config.data.augment.erase_probability = 0.3
    config.model.preset = "tiny"
    config.model.identity_multiple = 64
    return config
