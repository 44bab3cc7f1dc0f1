"""What all runs on the procedural benchmark share: its six data sets, its test sets and the `tiny` model."""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import evaluation_set, from_scratch, keys, train_unit

TARGETS = {
    "trad": "same_outfit", "cc": "other_outfit", "ctcc": "template_outfit", "vi": "other_modality",
    "t2i": "described_outfit", "li": "named_attributes",
}  # fmt: skip
"""Task -> the rule of its test set, beside which the person alone counts."""


def get_config() -> ConfigDict:
    config = from_scratch(keys.get_config())
    with config.unlocked():
        for task, target in TARGETS.items():
            name, person = f"procedural_{task}", "identity" if task == "t2i" else "market"
            config.data.train[name] = train_unit(name, task)
            config.evaluation.sets[name] = evaluation_set(name, task, (target, person))
    # Infrared images have no colours, so colours must not identify a person: jitter takes any hue, or none.
    config.data.train.procedural_vi.hue = 0.5
    config.data.train.procedural_vi.saturation = 1.0
    config.model.identity_multiple = 64
    config.loss.contrastive_weight = 2.0  # the only loss of one of the six tasks
    return config
