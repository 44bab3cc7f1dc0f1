"""Objectives of a training step, by name: terms of its loss, each over rows of its own.

A new objective is one file with a subclass of `Objective` and one line in `OBJECTIVES`; `config.objectives.NAME`
switches it on and holds its options. The objectives in `ALWAYS` are switched by weights of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irm_jax.errors import ConfigError
from irm_jax.objectives.base import Objective, TrainingMix
from irm_jax.objectives.captions import Captions
from irm_jax.objectives.contrast import Contrast
from irm_jax.objectives.identity_triplet import IdentityTriplet
from irm_jax.objectives.memory_bank import MemoryBank

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OBJECTIVES: dict[str, type[Objective]] = {
    "identity_triplet": IdentityTriplet,
    "memory_bank": MemoryBank,
    "captions": Captions,
    "contrast": Contrast,
}
"""All objectives. A step sums them in this order."""
ALWAYS = ("identity_triplet", "memory_bank", "captions", "contrast")
"""The objectives that have their own configuration keys and are switched by their weights."""


def check_names(config: ConfigDict) -> None:
    """Raises ConfigError for an objective of `config.objectives` that is not registered."""
    for name in config.objectives:
        if name not in OBJECTIVES or name in ALWAYS:
            others = [other for other in OBJECTIVES if other not in ALWAYS]
            raise ConfigError(
                f"config.objectives.{name}: there is no such further objective; registered in irm_jax.objectives are "
                f"{', '.join(others) or 'none'} beside {', '.join(ALWAYS)}, which have keys of their own"
            )


def build(config: ConfigDict, mix: TrainingMix) -> tuple[Objective, ...]:
    """The objectives that the configuration switches on. Raises ConfigError for one that is not registered."""
    check_names(config)
    used = [name for name in OBJECTIVES if name in ALWAYS or name in config.objectives]
    found = [OBJECTIVES[name].from_config(config, mix) for name in used]
    return tuple(objective for objective in found if objective is not None)
