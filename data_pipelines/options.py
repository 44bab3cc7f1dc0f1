"""Options of the data pipeline, made from `config.data`: units of the mix, augmentation, benchmark, batches."""

from __future__ import annotations

from ml_collections import ConfigDict

from data_pipelines import procedural, tasks
from data_pipelines.batches.augment import Augment
from data_pipelines.batches.layout import Unit
from data_pipelines.own import plan


def units_of(config: ConfigDict) -> list[Unit]:
    """Returns the units of `config.data.train` in name order; unset options take the task's own."""
    units = []
    for name in sorted(config.data.train):
        unit = config.data.train[name]
        spec = tasks.task(unit.task)
        changes = {
            "share": unit.share,
            "loss_weight": unit.loss_weight,
            "share_instruction": spec.composed and unit.share_instruction,
            "sentence": config.data.sentences.get(unit.task),
        }
        changes |= {key: unit[key] for key in ("images_per_identity", "outfits", "composed") if unit[key] is not None}
        units.append(Unit.of_task(unit.data_set, unit.task, **changes))
    return units


def benchmark_of(config: ConfigDict) -> procedural.Benchmark:
    """Returns the benchmark of `config.data.procedural`. Raises ValueError for options out of range."""
    options = config.data.procedural.to_dict()
    return procedural.Benchmark(
        **options | {key: tuple(options[key]) for key in ("image_size", "template_size", "extras")}
    )


def own_of(config: ConfigDict) -> plan.Options:
    """Returns how `config.data.table` is read. Raises DatasetError for options out of range."""
    own = config.data.own
    return plan.Options(
        config.data.table, own.pictures, tuple(own.tasks), own.test_share, own.split_seed, own.on_bad_image == "skip"
    )


def augment_of(config: ConfigDict, unit: str) -> Augment:
    """Returns the augmentation of one entry of `config.data.train`. Raises ValueError for options out of range."""
    options = config.data.augment.to_dict()
    own = {key: config.data.train[unit][key] for key in ("hue", "saturation")}
    return Augment(**{**options, **{key: value for key, value in own.items() if value is not None}})


def augments_of(config: ConfigDict) -> dict[str, Augment]:
    """Returns the augmentation of each data set. Raises ValueError where entries of one data set differ."""
    found: dict[str, Augment] = {}
    for name in sorted(config.data.train):
        data_set, own = config.data.train[name].data_set, augment_of(config, name)
        if found.setdefault(data_set, own) != own:
            raise ValueError(
                f"{name} and another entry read {data_set} with different hue or saturation; a data set has one "
                "augmentation, give both the same"
            )
    return found


def needs_keys(config: ConfigDict) -> bool:
    """Tells whether a momentum model reads the batches too, for the memory bank or the text-to-image objectives."""
    loss = config.loss
    captions = config.text_to_image.momentum_contrast or loss.masked_weight > 0 or loss.replaced_weight > 0
    return bool(config.memory_bank.size) or captions
