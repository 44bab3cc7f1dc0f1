"""Completes a configuration that names a table of own pictures: its data sets, test sets, batch and vocabulary."""

from __future__ import annotations

from absl import logging
from ml_collections import ConfigDict

from data_pipelines import options, tasks
from data_pipelines.batches import layout
from data_pipelines.own import build, plan
from irm_jax.config import keys
from irm_jax.errors import ConfigError

ROWS_PER_SET = 32
"""Least rows of a batch for each training entry; all have equally many."""


def complete(config: ConfigDict) -> None:
    """Fills `data.train`, `evaluation.sets` and what follows from them, if `config.data.table` names a table.

    The data sets go to a folder of `data.dir` whose name ends in a hash of the table, its pictures and options: another
    table is another folder. What is set already stays. Says which tasks the table allows.

    Raises:
      ConfigError: there are training entries already.
      DatasetError: the table cannot be read, or serves no task.
    """
    if not config.data.table:
        return
    if config.data.train or config.evaluation.sets:
        raise ConfigError(
            f"config.data.table = {config.data.table!r} makes its own entries of data.train and evaluation.sets, and "
            "the run file has some: use configs/own.py, or leave data.table out"
        )
    build.require_local(config.data.dir)
    found = plan.make(options.own_of(config), config.data.dir)
    logging.info("%s: %s", config.data.table, found.said)
    for note in found.notes:
        logging.info("%s: %s", config.data.table, note)
    config.data.dir = f"{config.data.dir}/{found.folder}"
    with config.unlocked():
        for one in found.tasks:
            name = f"{found.options.stem}_{one.task}"
            config.data.train[name] = _unit(one, found)
            config.evaluation.sets[name] = keys.evaluation_set(one.data_set, one.task, one.protocols)
    units = options.units_of(config)
    wanted = max(config.data.batch_size, ROWS_PER_SET * len(units))
    even = len(units) * config.data.batch_blocks * max(unit.images_per_identity for unit in units)
    config.data.batch_size = layout.next_batch_size(units, -(-wanted // even) * even, config.data.batch_blocks)
    if config.data.vocab == "builtin":
        config.data.vocab = build.make_vocabulary(found, build.vocabulary_folder(config.data.dir)) or "builtin"


def _unit(one: plan.TaskPlan, found: plan.Plan) -> ConfigDict:
    unit = keys.train_unit(one.data_set, one.task)
    spec = tasks.task(one.task)
    if spec.composed and not any(item.clothes >= 0 for item in found.scans[one.data_set].splits["train"]):
        unit.update({"outfits": 0, "composed": False, "share_instruction": False})
    if one.task == "vi":  # infrared pictures have no colours, so colours must not identify a person
        unit.update({"hue": 0.5, "saturation": 1.0})
    return unit
