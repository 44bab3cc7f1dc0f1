"""From `config.data` to the options of the parts: units of the mix, augmentation, benchmark. Loads nothing heavy."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from data_pipelines import tasks
from data_pipelines.batches import augment
from data_pipelines.batches.layout import Unit


def units_of(config: ConfigDict) -> list[Unit]:
    """The units of `config.data.train`, in name order; unset options take the task's own."""
    units = []
    for name in sorted(config.data.train):
        unit = config.data.train[name]
        spec = tasks.task(unit.task)
        changes = {
            "share": unit.share,
            "loss_weight": unit.loss_weight,
            "images_per_identity": unit.images_per_identity,
            "share_instruction": spec.composed and unit.share_instruction,
        }
        changes |= {key: unit[key] for key in ("outfits", "composed") if unit[key] is not None}
        units.append(Unit.of_task(unit.data_set, unit.task, **changes))
    return units


def benchmark_options(config: ConfigDict) -> dict[str, Any]:
    """`config.data.procedural` as arguments of `procedural.Benchmark`."""
    options: dict[str, Any] = config.data.procedural.to_dict()
    return options | {key: tuple(options[key]) for key in ("image_size", "template_size", "extras")}


def augment_of(config: ConfigDict, unit: str) -> augment.Augment:
    """The augmentation of one entry of `config.data.train`. Raises ValueError for options out of range."""
    options = config.data.augment.to_dict()
    own = {key: config.data.train[unit][key] for key in ("hue", "saturation")}
    return augment.Augment(**{**options, **{key: value for key, value in own.items() if value is not None}})


def augments_of(config: ConfigDict) -> dict[str, augment.Augment]:
    """The augmentation of each data set. Raises ValueError where entries that share one ask for different ones."""
    found: dict[str, augment.Augment] = {}
    for name in sorted(config.data.train):
        data_set, own = config.data.train[name].data_set, augment_of(config, name)
        if found.setdefault(data_set, own) != own:
            raise ValueError(
                f"{name} and another entry read {data_set} with different hue or saturation; a data set has one "
                "augmentation, give both the same"
            )
    return found


def needs_keys(config: ConfigDict) -> bool:
    """Whether a momentum model reads the batches too: for the memory bank, or for the text-to-image objectives."""
    loss = config.loss
    captions = config.text_to_image.momentum_contrast or loss.masked_weight > 0 or loss.replaced_weight > 0
    return bool(config.memory_bank.size) or captions
