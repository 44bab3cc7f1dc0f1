"""What every run on the procedural benchmark shares: its six data sets, test sets and the `tiny` model."""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import keys, scratch

TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")


def get_config() -> ConfigDict:
    config = scratch.from_scratch(keys.get_config())
    with config.unlocked():
        for task in TASKS:
            name = f"procedural_{task}"
            config.data.train[name] = keys.train_unit(name, task)
            config.evaluation.sets[name] = keys.evaluation_set(name, task, (name, f"{name}+identity"))
    config.data.train.procedural_t2i.images_per_identity = 1
    # What an infrared image does not show must not matter: visible ones come in any colour, or in none.
    config.data.train.procedural_vi.hue = 0.5
    config.data.train.procedural_vi.saturation = 1.0
    config.model.identity_multiple = 64
    config.loss.contrastive_weight = 2.0  # one of six tasks, and the only loss that it has
    return config
