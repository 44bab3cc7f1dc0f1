"""Instructions of three lengths: a finished quickstart asked by sentences, short phrases and key phrases.

    python -m irm_jax.main --config lengths --workdir runs/quickstart --mode evaluate

The queries of `li` are asked by each of the three sentences of their record; galleries have their sentence.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import load

LENGTHS = ("sentence", "short", "word")


def get_config() -> ConfigDict:
    config = load("quickstart")
    with config.unlocked():
        plain = config.evaluation.sets.procedural_li
        config.evaluation.sets = ConfigDict()
        for number, name in enumerate(LENGTHS):
            config.evaluation.sets[f"li_{name}"] = ConfigDict(plain.to_dict() | {"query_sentence": number})
    config.evaluation.task_free = False
    return config
