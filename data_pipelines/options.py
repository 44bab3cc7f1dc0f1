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


def growth_of(config: ConfigDict) -> list[tuple[int, float]]:
    """Returns [(steps done, share of the full height and width), ...] of `config.data.growth`; [] is full size.

    Raises ValueError for a text that cannot be read, steps or shares that do not rise from 0 and to 1, and for a full
    size that no step of the run has.
    """
    found = []
    for text in config.data.growth:
        start, _, part = text.partition("=")
        try:
            found.append((int(start), float(part)))
        except ValueError as error:
            raise ValueError(f"{text!r} is no STEPS=SHARE, such as '600=0.75': {error}") from error
    said, (steps, shares) = tuple(config.data.growth), zip(*found, strict=True) if found else ((0,), (1.0,))
    if steps[0] != 0 or list(steps) != sorted(set(steps)):
        raise ValueError(f"{said}: the steps must rise from 0, as in ('0=0.5', '600=1')")
    if not shares[0] > 0 or shares[-1] != 1 or list(shares) != sorted(set(shares)):
        raise ValueError(f"{said}: the shares must be above 0 and rise to 1, as in ('0=0.5', '600=1')")
    if steps[-1] >= config.train.steps:
        raise ValueError(
            f"{said}: no step has images of the full size, which evaluation reads; config.train.steps = "
            f"{config.train.steps} must be more than {steps[-1]}"
        )
    return found


def needs_keys(config: ConfigDict) -> bool:
    """Tells whether a momentum model reads the batches too, for the memory bank or the text-to-image objectives."""
    loss = config.loss
    captions = config.text_to_image.momentum_contrast or loss.masked_weight > 0 or loss.replaced_weight > 0
    return bool(config.memory_bank.size) or captions
