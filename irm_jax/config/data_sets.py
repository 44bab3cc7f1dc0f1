"""Entries of `data.train` and `evaluation.sets` for the published data sets, with their tasks and protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from irm_jax.config import keys
from irm_jax.errors import ConfigError

TEST: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "market1501": ("trad", ("market",), {}),
    "msmt17": ("trad", ("market",), {}),
    "cuhk03_detected": ("trad", ("market",), {}),
    "cuhk03_labeled": ("trad", ("market",), {}),
    "cuhk01": ("trad", ("market",), {}),
    "prcc": (
        "cc",
        ("prcc_cross_multi_shot", "prcc_cross_single_shot", "prcc_same_multi_shot", "prcc_same_single_shot"),
        {},
    ),
    "ltcc": ("cc", ("ltcc_cc", "market", "ltcc_sc"), {}),
    "vcclothes": ("cc", ("vcclothes_cc", "market", "vcclothes_sc"), {}),
    "real2_ctcc": ("ctcc", ("market", "requested_outfit"), {}),
    "real2_li": ("li", ("market", "requested_outfit"), {}),
    "market1501_attributes": ("li", ("market",), {}),
    "llcm": ("vi", ("llcm_n2v", "llcm_v2n", "llcm_v2n_released"), {"query_split": "test", "gallery_split": "test"}),
    "sysu_mm01": ("vi", ("sysu_all", "sysu_indoor"), {}),
    "cuhk_pedes": ("t2i", ("identity",), {}),
    "cuhk_pedes_part": ("t2i", ("identity",), {}),
}
"""Data set -> (task, protocols with the headline first, other keys of its entry)."""
TRAIN = {name: task for name, (task, _, _) in TEST.items()} | {
    "msmt17_trainval": "trad",
    "real1_ctcc": "ctcc",
    "real1_li": "li",
    "synth_pedes": "t2i",
}
"""Data set -> task. Real2 has no training part; opening it for training says so."""


def train_on(config: ConfigDict, names: Sequence[str]) -> None:
    """Adds training sets. Raises ConfigError for a data set that is not in the table."""
    with config.unlocked():
        for name in names:
            config.data.train[name] = keys.train_unit(name, _known(TRAIN, name))


def test_on(config: ConfigDict, names: Sequence[str]) -> None:
    """Adds test sets under their protocols. Raises ConfigError for a data set that is not in the table."""
    with config.unlocked():
        for name in names:
            task, protocols, changes = _known(TEST, name)
            config.evaluation.sets[name] = keys.evaluation_set(name, task, protocols)
            config.evaluation.sets[name].update(changes)


def _known(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise ConfigError(f"no data set {name!r}; known are {', '.join(table)}")
    return table[name]
