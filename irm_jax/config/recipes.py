"""Settings that several run files share."""

from __future__ import annotations

from ml_collections import ConfigDict


def from_scratch(config: ConfigDict) -> ConfigDict:
    """Sets the `tiny` model, and rates and augmentation with which it learns within minutes on a CPU.

    For runs that start from random numbers; the paper starts from pretrained weights.
    """
    config.model.preset = "tiny"
    config.optimizer.learning_rate = 2e-3
    # On plain distances all features shrink to one point before identities differ (docs/method.md, adaptive triplet).
    config.loss.triplet_unit = "spread"
    config.loss.alpha = 0.1
    # Sentences and templates name colours, and a small model learns them first; strong jitter would hide them.
    config.data.augment.brightness = 0.2
    config.data.augment.contrast = 0.2
    config.data.augment.saturation = 0.2
    config.data.augment.hue = 0.02
    config.data.augment.erase_probability = 0.3
    return config


def small_real(config: ConfigDict) -> ConfigDict:
    """Sets what the `tiny` model learns built data sets of real people with: `from_scratch`, in batches of 128 rows."""
    from_scratch(config)
    config.data.build_missing = False
    config.data.batch_size = 128
    config.model.identity_multiple = 256
    config.optimizer.warmup_steps = 100
    return config


def quick_recipe(config: ConfigDict) -> ConfigDict:
    """Sets what learns most in few steps from random numbers (ours; docs/ablations.md has what each part brings).

    Muon; a class token that starts from the pooled picture; contrast of every row with all rows of the batch, and of
    composed rows; half of the rows under the neutral sentence, which the task-free setting asks by.
    """
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.model.pooled_class_token = True
    config.loss.contrast_weight = 1.0
    config.loss.composed_contrast_weight = 1.0
    config.data.instruction_dropout = 0.5
    return config


def irm_plus_plus(config: ConfigDict) -> ConfigDict:
    """Switches on what IRM++ adds to IRM, except the sizes of memory bank, caption queue and fusion encoder."""
    config.momentum.second_view = True
    config.text_to_image.momentum_contrast = True
    config.loss.matching_weight = 1.0
    config.loss.masked_weight = 1.0
    config.loss.replaced_weight = 0.5
    return config
